"""Measure the share of a teacher's features in another model of any width: nearest neighbours, and a linear readout."""

import torch
from torch.nn.functional import normalize


def agreement(ours, theirs, nearest=10):
    """Return which part of an image's nearest neighbours by the teacher's features [image channel] is nearest by ours.

    Cosines after taking off the mean; by chance it is nearest / (images - 1).
    """
    sets = []
    for features in (ours, theirs):
        x = normalize(features - features.mean(0), dim=-1)
        near = (x @ x.T).fill_diagonal_(-2).topk(nearest).indices
        sets.append(torch.zeros(len(x), len(x), dtype=torch.bool).scatter_(1, near, True))
    return (sets[0] & sets[1]).sum().item() / (nearest * len(ours))


def readable(ours, theirs, ridge=1e-3):
    """Return the part of the variance of the teacher's tokens [image token channel] that a linear map of ours predicts.

    Fitted on every other image, judged on the rest; so a map that only knows the images it was fitted on has none.
    """
    (x, unseen), (y, wanted) = (
        [part.flatten(0, 1).double() for part in (tokens[::2], tokens[1::2])] for tokens in (ours, theirs)
    )
    mean, center = x.mean(0), y.mean(0)
    products = (x - mean).T @ (x - mean)
    products += ridge * products.diagonal().mean() * torch.eye(len(products), dtype=products.dtype)
    map_ = torch.linalg.solve(products, (x - mean).T @ (y - center))
    error = wanted - center - (unseen - mean) @ map_
    return 1 - (error.square().sum() / (wanted - wanted.mean(0)).square().sum()).item()
