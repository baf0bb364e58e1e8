"""Mixers that VMamba's authors tried; their numbers are tested against a plain derivation in models/official."""

import pytest
import torch

from transmamba.nn.norm import TokenBatchNorm
from transmamba.nn.ss2d_variants import CascadeSS2D, HeadedSS2D, StackedHeadSSM
from transmamba.ops import scan_orders

ORDERS = ("raster", "column", "raster_reverse", "column_reverse")


def mixed(mixer, grid=(2, 3), batch=1):
    x = torch.randn(batch, grid[0] * grid[1], 8, dtype=torch.float64, requires_grad=True)
    return x, mixer.double()(x, scan_orders(ORDERS, grid), grid)


@pytest.mark.parametrize("kind", [CascadeSS2D, HeadedSS2D])
def test_gradients(kind):
    mixer = kind(8, 2, dt_rank=2, expand=0.5).double()
    x, _ = mixed(mixer)
    assert torch.autograd.gradcheck(lambda x: mixer(x, scan_orders(ORDERS, (2, 3)), (2, 3)), (x,))


@pytest.mark.parametrize("kind", [CascadeSS2D, HeadedSS2D])
@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 1)])
def test_lines_and_single_cells_are_maps_too(kind, grid):
    x, y = mixed(kind(8, 2, dt_rank=2), grid)
    assert y.shape == x.shape and y.isfinite().all()


def test_a_cascade_is_reached_along_rows_and_columns_by_step_not_by_token():
    x, y = mixed(CascadeSS2D(8, 2, d_conv=None), (3, 3))

    def reached(step, token):  # the way there has read up to this token, the way back as many from the end
        return token <= step or token >= 2 - step

    for i, j in [(i, j) for i in range(3) for j in range(3)]:
        (grad,) = torch.autograd.grad(y[0, 3 * i + j].sum(), x, retain_graph=True)
        for r, c in [(r, c) for r in range(3) for c in range(3)]:
            assert bool(grad[0, 3 * r + c].any()) == (reached(i, r) and reached(j, c)), (i, j, r, c)


def test_directions_of_heads_add_up():
    mixer = HeadedSS2D(8, 2, dt_rank=2).double()
    x, y = mixed(mixer)
    out, parts = mixer.forward_directions(x, scan_orders(ORDERS, (2, 3)), (2, 3))
    torch.testing.assert_close(out, y)
    torch.testing.assert_close(parts.sum(0), y)


def test_channels_of_a_head_share_their_step():
    ssm = StackedHeadSSM(6, 2, heads=3, directions=4)
    dt, A, _, _, D, dt_bias = ssm.scan_parameters(torch.randn(2, 5, 6))
    assert dt.shape == (2, 4, 5, 6) and A.shape == (4, 6, 2) and D.shape == (4, 6)
    for x in (dt, A.transpose(1, 2), dt_bias):
        assert torch.equal(x[..., ::2], x[..., 1::2])
    with pytest.raises(ValueError, match="heads must divide the inner width: got 4 heads, width 6"):
        StackedHeadSSM(6, 2, heads=4, directions=4)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_tokens_is_that_of_maps(training):
    ours, map_norm = TokenBatchNorm(3).train(training), torch.nn.BatchNorm2d(3).train(training)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(ours(x.movedim(1, -1)).movedim(-1, 1), map_norm(x))
    torch.testing.assert_close(ours.running_var, map_norm.running_var)
    with pytest.raises(ValueError, match="3"):
        ours(torch.zeros(2, 4))
