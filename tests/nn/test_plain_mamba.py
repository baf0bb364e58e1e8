import torch

from transmamba.nn.plain_mamba import PlainMambaMixer, moves_between
from transmamba.ops import scan_orders

SNAKES = ("snake", "snake_reverse", "snake_column", "snake_column_reverse")


def test_moves_are_right_left_up_and_down():
    moves = moves_between(scan_orders(SNAKES, (2, 3)), (2, 3))
    assert moves.tolist() == [[0, 1, 1, 4, 2, 2], [0, 1, 1, 3, 2, 2], [0, 4, 1, 3, 1, 4], [0, 3, 2, 4, 2, 3]]


def mixed(x, grid, **options):
    torch.manual_seed(1)
    mixer = PlainMambaMixer(6, 5, d_conv=3, **options)
    orders = scan_orders(SNAKES, grid)
    moves = moves_between(orders, grid)
    return mixer(x, orders, moves, grid), mixer.forward_directions(x, orders, moves, grid), mixer


def test_directions_add_up_to_the_output():
    whole, (again, parts), mixer = mixed(torch.randn(2, 15, 6), (3, 5))
    torch.testing.assert_close(again, whole)
    torch.testing.assert_close(parts.sum(0) + mixer.out_proj.bias, whole)


def test_a_step_uses_the_parameters_of_its_token_unless_released():
    """Turning the map by half a turn exchanges each snake with its reverse, once each token keeps its parameters."""
    x, grid = torch.randn(2, 15, 6), (3, 5)
    for released in (False, True):
        torch.manual_seed(1)
        mixer = PlainMambaMixer(6, 5, d_conv=3, released_scan=released)
        with torch.no_grad():
            mixer.direction_B.zero_()
            mixer.conv2d.weight.copy_((mixer.conv2d.weight + mixer.conv2d.weight.flip(-1, -2)) / 2)
        orders = scan_orders(SNAKES, grid)
        moves = moves_between(orders, grid)
        turned = mixer(x.flip(1), orders, moves, grid).flip(1)
        assert torch.allclose(turned, mixer(x, orders, moves, grid), atol=1e-5) is not released
