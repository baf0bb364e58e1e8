import pytest
import torch
from torch import nn

from transmamba.models import BlockStack
from transmamba.models.stack import drop_path_rates, init_patches, reset_children, shrink_output
from transmamba.nn import MambaBlock, MambaMixer
from transmamba.ops import scan_orders


@pytest.fixture
def stack():
    return BlockStack(MambaBlock(6, MambaMixer(6, 3, directions=2)) for _ in range(3))


def test_is_its_blocks_one_after_the_other(stack):
    x, orders = torch.randn(2, 5, 6), scan_orders(("forward", "backward"), 5)
    expected, layers = x, []
    for block in stack:
        expected = block(expected, orders)
        layers.append(expected)
    assert torch.equal(stack(x, orders), expected)
    assert all(torch.equal(a, b) for a, b in zip(stack.streams(x, orders).layers, layers, strict=True))


def test_shares_are_in_scan_order(stack):
    x, orders = torch.randn(2, 5, 6), scan_orders(("forward", "backward"), 5)
    _, parts = stack[0].forward_directions(x, orders)
    (forward, *_), (backward, *_) = stack.streams(x, orders, directions=True).directions
    torch.testing.assert_close(forward, parts[0])
    torch.testing.assert_close(backward, parts[1].flip(1))


def test_drop_path_rises_linearly():
    assert drop_path_rates(0.2, 5) == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert drop_path_rates(0.2, 1) == [0.0]


class Owner(nn.Module):
    """A model that initialises its own parameters in its own way."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def reset_parameters(self):
        nn.init.ones_(self.linear.weight)


def test_owners_have_the_last_word_when_children_are_reset():
    model = nn.Sequential(Owner(), nn.Linear(5, 7))
    before = model[1].weight.detach().clone()
    reset_children(model)
    assert torch.equal(model[0].linear.weight, torch.ones(5, 3)) and not torch.equal(model[1].weight, before)


def test_a_module_that_could_not_be_drawn_anew_is_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

    with pytest.raises(TypeError, match="Scale owns gain and has no reset_parameters: give it one that draws them"):
        reset_children(nn.Sequential(nn.Linear(3, 3), Scale()))
    own = Scale()
    reset_children(own)  # parameters of the model itself are its own matter


def test_the_last_layer_of_a_branch_shrinks_with_depth():
    linear = nn.Linear(3, 5)
    before = linear.weight.detach().clone()
    shrink_output(linear, 4)
    torch.testing.assert_close(linear.weight, before / 2)


def test_patches_start_with_variance_one_over_their_inputs():
    conv = nn.Conv2d(3, 4096, 4)
    init_patches(conv)
    assert conv.weight.std().item() == pytest.approx(48**-0.5, rel=0.02) and not conv.bias.any()
