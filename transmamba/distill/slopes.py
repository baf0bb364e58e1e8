"""Divergences with their gradients in closed form, for losses that compute both while the logits are there."""

import math

import torch
from torch import Tensor


def divergence_slope(divergence: str, beta: float, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the divergence of each token, and its gradient by the logits of which `log_q` is the log-softmax.

    Nothing is recorded for autograd, and both arguments are used up: each operation on tensors of this size moves
    as many bytes as the logits have.

    Args:
        divergence: "forward", "reverse" or "js", as in `LogitsDistill`.
        beta: the share of p in the mixture of "js".
        log_p: log-probabilities of the teacher, (token, classes).
        log_q: those of the student, of the same shape.

    Returns:
        (token,) and (token, classes).
    """
    if divergence == "forward":
        p = log_p.exp()
        value = log_p.sub_(log_q).masked_fill_(p == 0, 0).mul_(p).sum(-1)
        return value, log_q.exp_().sub_(p)
    if divergence == "reverse":
        return _slope_of_first(log_q, log_p)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    p = log_p.exp()
    value = log_p.sub_(log_m).masked_fill_(p == 0, 0).mul_(p).sum(-1)
    # the derivatives through m cancel between the two terms
    rest, slope = _slope_of_first(log_q, log_m)
    return beta * value + (1 - beta) * rest, slope.mul_(1 - beta)


def _slope_of_first(log_q: Tensor, log_m: Tensor) -> tuple[Tensor, Tensor]:
    """Compute KL(q || m) and its gradient by the logits of q, where m is constant."""
    q = log_q.exp()
    # a class of probability zero adds nothing; 0 * (-inf + inf) would be NaN
    difference = log_q.sub_(log_m).masked_fill_(q == 0, 0)
    value = (q * difference).sum(-1)
    return value, difference.sub_(value.unsqueeze(-1)).mul_(q)
