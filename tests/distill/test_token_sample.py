import pytest
import torch

from transmamba.distill import AdaptiveLayerDistill, BidirectionalDistill, MultiDirectionalDistill, sample_tokens
from transmamba.ops.orders import permute_tokens, scan_order


def test_sample_is_ascending_without_repetition():
    sample = sample_tokens(11, 7, generator=torch.Generator().manual_seed(0))
    assert len(sample.tokens) == 7
    assert (sample.tokens.diff() > 0).all()


def test_take_reads_every_order():
    x = torch.randn(2, 6, 3)
    sample = sample_tokens(6, 4)
    expected = x[:, sample.tokens]
    column = scan_order("column", (2, 3))
    assert torch.equal(sample.take(x), expected)
    assert torch.equal(sample.take(x.flip(1), "backward"), expected)
    assert torch.equal(sample.take(permute_tokens(x, column), column), expected)


def test_loss_on_all_tokens_is_the_loss():
    forward, backward, teacher = (torch.randn(2, 6, 3) for _ in range(3))
    sample = sample_tokens(6, 6)
    loss = BidirectionalDistill(order="raster")
    got = loss([sample.take(forward)], [sample.take(backward, "backward")], sample.take(teacher))
    torch.testing.assert_close(got, BidirectionalDistill()([forward], [backward], teacher))


def test_mean_over_samples_is_the_full_loss():
    student, teacher = (torch.randn(2, 5, 3, dtype=torch.float64) for _ in range(2))
    loss = AdaptiveLayerDistill()
    samples = [sample_tokens(5, 2)._replace(tokens=torch.tensor([i, j])) for i in range(5) for j in range(i + 1, 5)]
    mean = sum(loss([s.take(student)], s.take(teacher)) for s in samples) / len(samples)
    torch.testing.assert_close(mean, loss([student], teacher))


def test_directions_meet_the_same_tokens():
    teacher = torch.randn(2, 6, 3)
    sample = sample_tokens(6, 3)
    orders = {name: scan_order(name, (2, 3)) for name in ("snake", "column_reverse")}
    taken = {name: [sample.take(permute_tokens(teacher, order), order)] for name, order in orders.items()}
    assert MultiDirectionalDistill(order="raster")(taken, sample.take(teacher)).abs() < 1e-6


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match=r"cannot keep 0 of 5 tokens"):
        sample_tokens(5, 0)
    with pytest.raises(ValueError, match=r"cannot keep 6 of 5 tokens"):
        sample_tokens(5, 6)
    with pytest.raises(ValueError, match=r"length must be at most 2147483647, got 1099511627776"):
        sample_tokens(2**40, 6)
    with pytest.raises(ValueError, match=r"sample of 5 tokens, x has 7"):
        sample_tokens(5, 2).take(torch.randn(1, 7, 3))
    with pytest.raises(ValueError, match=r"unknown order 'column': expected forward, backward or a ScanOrder"):
        sample_tokens(5, 2).take(torch.randn(1, 5, 3), "column")
