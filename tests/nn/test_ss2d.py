import torch

from transmamba.nn.ss2d import SS2D
from transmamba.ops import scan_orders

ORDERS = ("raster", "column", "raster_reverse", "column_reverse")


def test_directions_add_up_through_the_norm():
    mixer, orders = SS2D(6, 3), scan_orders(ORDERS, (3, 5))
    with torch.no_grad():
        mixer.out_norm.weight.uniform_(0.5, 2.0)
        mixer.out_norm.bias.uniform_(-1.0, 1.0)
    x = torch.randn(2, 15, 6)
    whole, parts = mixer.forward_directions(x, orders, (3, 5))
    torch.testing.assert_close(whole, mixer(x, orders, (3, 5)))
    torch.testing.assert_close(parts.sum(0), whole)
    assert parts.shape == (4, 2, 15, 6)


def test_each_direction_owns_its_parameters():
    mixer, orders = SS2D(6, 3, gated=False, expand=1.0), scan_orders(ORDERS, (3, 5))
    x = torch.randn(2, 15, 6)
    before = mixer._scan(x, orders, (3, 5), merge=False)[0]
    with torch.no_grad():
        mixer.ssm.D[2] += 1.0
    after = mixer._scan(x, orders, (3, 5), merge=False)[0]
    changed = [not torch.equal(before[:, k], after[:, k]) for k in range(4)]
    assert changed == [False, False, True, False]


def test_the_rank_of_the_step_sizes_can_be_chosen():
    assert SS2D(40).ssm.dt_rank == 3 and SS2D(40, dt_rank=5).ssm.dt_proj.shape == (4, 80, 5)
