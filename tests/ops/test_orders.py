import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transmamba.ops import ORDER_NAMES, permute_tokens, scan_order, scan_orders

GRIDS = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        # 0 1 2
        # 3 4 5
        "raster": [0, 1, 2, 3, 4, 5],
        "forward": [0, 1, 2, 3, 4, 5],
        "backward": [5, 4, 3, 2, 1, 0],
        "raster_reverse": [5, 4, 3, 2, 1, 0],
        "column": [0, 3, 1, 4, 2, 5],
        "column_reverse": [5, 2, 4, 1, 3, 0],
        "snake": [0, 1, 2, 5, 4, 3],
        "snake_column": [0, 3, 4, 1, 2, 5],
        "diagonal": [0, 1, 3, 2, 4, 5],
        "antidiagonal": [2, 1, 5, 0, 4, 3],
    }.items(),
)
def test_order_on_two_rows_of_three(name, expected):
    assert scan_order(name, (2, 3)).index.tolist() == expected


def test_video_orders_on_two_frames():
    # frame 0: 0 1 / 2 3, frame 1: 4 5 / 6 7
    assert scan_order("temporal", (2, 2, 2)).index.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert scan_order("column", (2, 2, 2)).index.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert scan_order("snake", (2, 2, 2)).index.tolist() == [0, 1, 3, 2, 6, 7, 5, 4]


@given(grid=GRIDS, name=st.sampled_from(ORDER_NAMES))
def test_order_is_a_permutation_and_its_inverse(grid, name):
    needed = 3 if "temporal" in name else 1 if name.split("_")[0] in ("raster", "forward", "backward") else 2
    if len(grid) < needed:
        with pytest.raises(ValueError, match=f"needs a grid of at least {needed} axes"):
            scan_order(name, grid)
        return
    order = scan_order(name, grid)
    count = len(order.index)
    assert count == torch.Size(grid).numel()
    assert torch.equal(order.index[order.inverse], torch.arange(count))
    assert torch.equal(order.inverse[order.index], torch.arange(count))


@given(grid=st.tuples(st.integers(1, 5), st.integers(1, 5)), name=st.sampled_from(["snake", "snake_column"]))
def test_a_snake_only_steps_to_neighbours(grid, name):
    index = scan_order(name, grid).index
    rows, columns = index // grid[1], index % grid[1]
    assert (rows.diff().abs() + columns.diff().abs() == 1).all()


def test_reverse_is_the_order_walked_backwards():
    assert torch.equal(scan_order("snake_reverse", (3, 5)).index, scan_order("snake", (3, 5)).index.flip(0))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown scan order 'spiral': expected one of forward, backward, raster"):
        scan_order("spiral", 5)


@pytest.mark.parametrize("grid", [(), (2, 0), (1, 2, 3, 4), 0])
def test_impossible_grid_is_refused(grid):
    with pytest.raises(ValueError, match="grid must be 1 to 3 positive integers, got"):
        scan_order("forward", grid)


def test_scan_orders_takes_names_and_token_numbers():
    first, second = scan_orders(["backward", (2, 0, 1)], 3)
    assert first.index.tolist() == [2, 1, 0]
    assert second.inverse.tolist() == [1, 2, 0]


@pytest.mark.parametrize("spec", [(0, 1), (0, 1, 1), (1, 2, 3)])
def test_token_numbers_that_are_no_permutation_are_refused(spec):
    with pytest.raises(ValueError, match="must visit each of 3 tokens once"):
        scan_orders([spec], 3)


def test_no_order_at_all_is_refused():
    with pytest.raises(ValueError, match="specs is empty"):
        scan_orders([], 3)


def test_permute_and_undo_is_the_identity_with_gradient():
    order = scan_order("diagonal", (2, 3))
    x = torch.randn(5, 6, 2, dtype=torch.double, requires_grad=True)
    assert torch.equal(permute_tokens(permute_tokens(x, order), order.undo()), x)
    assert torch.autograd.gradcheck(lambda x: permute_tokens(x, order), x)
    assert torch.equal(torch.func.vmap(lambda x: permute_tokens(x, order))(x), permute_tokens(x, order))


def test_permuting_another_length_is_refused():
    with pytest.raises(ValueError, match="order has 6 tokens, axis -2 of x has 5"):
        permute_tokens(torch.zeros(2, 5, 3), scan_order("forward", 6))
