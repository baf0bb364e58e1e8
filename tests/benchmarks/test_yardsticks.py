"""Neighbours and readable variance against cases with a known answer."""

import torch

from tests.benchmarks.yardsticks import agreement, readable


def test_agreement_of_a_rotation_is_whole_and_of_noise_is_chance():
    torch.manual_seed(0)
    theirs = torch.randn(400, 16)
    rotation = torch.linalg.qr(torch.randn(16, 16))[0]
    assert agreement(3 * theirs @ rotation + 1, theirs) == 1.0
    assert abs(agreement(torch.randn(400, 8), theirs) - 10 / 399) < 0.01


def test_agreement_counts_common_neighbours():
    # on a circle, in two orders: the pairs (0, 1), (2, 3) against (0, 3), (1, 2)
    angles = torch.tensor([[0.0, 0.1, 3.1, 3.2], [0.0, 3.1, 3.2, 0.1]])
    ours, theirs = torch.stack([angles.cos(), angles.sin()], -1)
    assert agreement(ours, theirs, nearest=1) == 0.0
    assert agreement(ours, theirs, nearest=2) == 0.5  # each has two of three others: one of them in both


def test_readable_is_the_variance_within_reach_of_a_linear_map():
    torch.manual_seed(0)
    ours = torch.randn(100, 30, 6)
    theirs = ours @ torch.randn(6, 9) + 2
    assert readable(ours, theirs, ridge=1e-9) > 1 - 1e-6
    hidden = torch.randn(100, 30, 9)
    wanted = readable(ours, theirs + hidden * theirs.var() ** 0.5, ridge=1e-9)
    assert abs(wanted - 0.5) < 0.02  # half of the variance is out of reach
    assert abs(readable(torch.randn(100, 30, 6), theirs)) < 0.02
