"""Rotations and pairs of Vim's layers; their numbers are tested against a plain derivation in models/official."""

import pytest
import torch

from transmamba.models.vim_layers import GridRotation, VimBlock, VimPair
from transmamba.nn import MambaMixer
from transmamba.ops import scan_orders


def test_a_rotation_keeps_lengths_and_the_first_cell_and_leaves_the_odd_token_alone():
    rotation, x = GridRotation(8, (2, 2)), torch.randn(3, 5, 8)
    y = rotation(x)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(y[:, :2], x[:, :2], rtol=0, atol=0)  # the token alone, and the cell of angle zero
    assert (y[:, 2:] - x[:, 2:]).abs().amax() > 0.1
    torch.testing.assert_close(rotation(x[:, 1:]), y[:, 1:])


def test_a_rotation_turns_by_rows_in_the_first_half_and_by_columns_in_the_second():
    turned = GridRotation(8, (2, 2), trained=2)(torch.ones(1, 4, 8))[0]
    torch.testing.assert_close(turned[1, :4], torch.ones(4))
    torch.testing.assert_close(turned[2, 4:], torch.ones(4))
    cos, sin = torch.tensor(1.0).cos(), torch.tensor(1.0).sin()
    torch.testing.assert_close(turned[2, :2], torch.stack([cos - sin, cos + sin]))


def test_tables_are_computed_anew():
    rotation = GridRotation(8, (2, 2))
    expected = {name: value.clone() for name, value in rotation.state_dict().items()}
    rotation.to_empty(device="cpu").reset_parameters()
    for name, value in rotation.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((6, (2, 2)), "got 6 and"), ((8, (2, 3)), r"a square grid, got 8 and \(2, 3\)"), ((8, (2, 2), 0), "trained")],
)
def test_what_cannot_be_turned_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridRotation(*arguments[:2], **({"trained": arguments[2]} if len(arguments) > 2 else {}))


def test_other_numbers_of_tokens_are_refused():
    with pytest.raises(
        ValueError, match="7 tokens cannot be turned: expected the 4 cells of the grid, after one other"
    ):
        GridRotation(8, (2, 2))(torch.zeros(1, 7, 8))


@pytest.mark.parametrize("turns", ["stream", "output", "none"])
def test_directions_add_up_in_a_pair_and_gradients_flow(turns):
    blocks = [VimBlock(8, MambaMixer(8, 3, directions=2), turns=turns).double() for _ in range(2)]
    pair, rotation = VimPair(*blocks), GridRotation(8, (2, 2)).double()
    x = torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)
    orders = scan_orders(("forward", "backward", "backward", "forward"), 4)
    y, parts = pair.forward_directions(x, orders, rotation)
    torch.testing.assert_close(y, pair(x, orders, rotation))
    stream = rotation(x) if turns == "stream" else x
    torch.testing.assert_close(2 * stream + parts.sum(0), y)
    assert torch.autograd.gradcheck(lambda x: pair(x, orders, rotation), (x,))
