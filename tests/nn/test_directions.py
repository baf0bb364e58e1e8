"""Mixers of Mamba-2 and Mamba-3 along several scan orders."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transmamba.nn import HeadSSM, Mamba2Mixer, Mamba3Mixer
from transmamba.ops import scan_order, scan_orders

DIM = 6
TWO, FOUR = ("raster", "raster_reverse"), ("snake", "snake_reverse", "snake_column", "column_reverse")
BUILD = {
    "mamba2": partial(Mamba2Mixer, DIM, 5, head_dim=4, bias=True),
    "mamba2, MLP beside": partial(Mamba2Mixer, DIM, 5, head_dim=4, d_ssm=8, bias=True),
    "mamba2, no norm": partial(Mamba2Mixer, DIM, 5, head_dim=4, normed=False),
    "mamba2, groups": lambda directions: Mamba2Mixer(
        DIM, ssm=HeadSSM(4, 3, d_state=5, groups=2, channel_skip=True, chunk_size=3), directions=directions
    ),
    "mamba3": partial(Mamba3Mixer, DIM, 4, head_dim=4),
}
every_mixer = pytest.mark.parametrize("name", BUILD)


def build(name, directions=2, size=0.3):
    torch.manual_seed(3)
    mixer = BUILD[name](directions=directions).double()
    for parameter in mixer.parameters():  # nothing is left at a start that two directions share
        parameter.data += size * torch.randn_like(parameter)
    return mixer


def alone(mixer, k):
    """Build the mixer of one direction with the parameters of direction k."""
    one = copy.deepcopy(mixer)
    one.others = nn.ModuleList()
    own = (
        {"conv1d", "ssm"}
        if isinstance(mixer, Mamba2Mixer)
        else {"B_norm", "C_norm", "B_bias", "C_bias", "dt_bias", "D"}
    )
    if k:
        for name in own:
            setattr(one, name, copy.deepcopy(getattr(mixer.others[k - 1], name)))
    return one


def by_loop(mixer, x, orders, mask=None):
    """Run each direction as a mixer of its own on a permuted copy of its input."""
    bias = 0.0 if mixer.out_proj.bias is None else mixer.out_proj.bias
    parts = []
    for k, order in enumerate(orders):
        real = None if mask is None else mask[:, order.index]
        parts.append(alone(mixer, k)(x[:, order.index], None, real)[:, order.inverse] - bias)
    return torch.stack(parts), bias


def beside(mixer, x):
    """Return the output of the MLP beside the heads: the same in all directions, and counted once."""
    if not isinstance(mixer, Mamba2Mixer) or not mixer.sizes[0]:
        return 0.0
    gate, value = mixer.in_proj(x)[..., : 2 * mixer.sizes[0]].chunk(2, -1)
    return (F.silu(gate) * value) @ mixer.out_proj.weight[:, : mixer.sizes[0]].T


@every_mixer
@pytest.mark.parametrize("names", [TWO, FOUR])
def test_output_is_the_sum_of_its_directions(name, names):
    mixer, x, orders = build(name, len(names)), torch.randn(2, 6, DIM, dtype=torch.float64), scan_orders(names, (2, 3))
    parts, bias = by_loop(mixer, x, orders)
    shared = beside(mixer, x)
    torch.testing.assert_close(mixer(x, orders), parts.sum(0) - (len(names) - 1) * shared + bias)
    mixed, shares = mixer.forward_directions(x, orders)
    torch.testing.assert_close(shares, parts - shared * (len(names) - 1) / len(names))
    torch.testing.assert_close((mixed, shares.sum(0) + bias), (mixer(x, orders),) * 2)


@every_mixer
def test_default_orders_are_forward_and_backward(name):
    mixer, x = build(name), torch.randn(2, 7, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), mixer(x, scan_orders(TWO, 7)))
    assert mixer(x[:, :0]).shape == (2, 0, DIM) and mixer(x[:0]).shape == (0, 7, DIM)


@every_mixer
def test_gradients_are_those_of_the_loop(name):
    mixer, x, orders = build(name), torch.randn(2, 6, DIM, dtype=torch.float64), scan_orders(FOUR[1:3], (2, 3))
    if mixer.__class__ is Mamba2Mixer and mixer.sizes[0]:
        pytest.skip("the loop counts the MLP beside the heads twice")
    cotangent = torch.randn_like(x)
    x.requires_grad_()
    (got,) = torch.autograd.grad((mixer(x, orders) * cotangent).sum(), x)
    parts, bias = by_loop(mixer, x, orders)
    (wanted,) = torch.autograd.grad(((parts.sum(0) + bias) * cotangent).sum(), x)
    torch.testing.assert_close(got, wanted)
    assert torch.autograd.gradcheck(lambda x: mixer(x, orders), x[:1, :6].detach().requires_grad_(), fast_mode=True)
    (mixer(x, orders) * cotangent).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in mixer.parameters())


@every_mixer
@pytest.mark.parametrize("real", [slice(0, 5), slice(2, 7)])
def test_padded_is_unpadded(name, real):
    mixer, x = build(name), torch.randn(1, 7, DIM, dtype=torch.float64)
    mask = torch.zeros(1, 7, dtype=torch.bool)
    mask[:, real] = True
    torch.testing.assert_close(mixer(x, mask=mask)[:, real], mixer(x[:, real]))
    wild = x.masked_fill(~mask[..., None], 1e3)
    torch.testing.assert_close(mixer(wild, mask=mask)[:, real], mixer(x[:, real]))


@every_mixer
def test_packed_sequences_do_not_see_each_other(name):
    mixer, x = build(name), torch.randn(1, 7, DIM, dtype=torch.float64)
    packed = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    expected = torch.cat([mixer(x[:, :3]), mixer(x[:, 3:])], 1)
    torch.testing.assert_close(mixer(x, seq_idx=packed), expected)
    torch.testing.assert_close(mixer(x, scan_orders(TWO, 7), None, packed), expected)


@every_mixer
def test_packed_along_a_grid_is_refused(name):
    with pytest.raises(ValueError, match="scan order 1 goes to and fro between packed sequences"):
        orders = scan_orders(("raster", "column"), (2, 3))
        build(name)(torch.zeros(1, 6, DIM).double(), orders, None, torch.tensor([[0, 0, 0, 1, 1, 1]]))


@pytest.mark.parametrize("name", ["mamba2", "mamba3"])
def test_numbers_of_orders_and_decoding(name):
    x = torch.zeros(1, 6, DIM).double()
    for directions, orders, given in ((2, scan_orders(FOUR, (2, 3)), "4"), (4, None, "no"), (2, [], "0")):
        with pytest.raises(ValueError, match=f"a mixer of {directions} directions got {given} scan orders"):
            build(name, directions)(x, orders)
    for call in (lambda m: m.empty_cache(1), lambda m: m.prefill(x)):
        with pytest.raises(ValueError, match="decoding goes forward: it needs a mixer of 1 direction, this one has 2"):
            call(build(name))
    with pytest.raises(ValueError, match="directions"):
        BUILD[name](directions=0)


@pytest.mark.parametrize("name", ["mamba2", "mamba3"])
def test_one_direction_keeps_its_parameters_and_its_start(name):
    states = []
    for directions in (1, 2):
        torch.manual_seed(5)
        states.append(BUILD[name](directions=directions).state_dict())
    assert not any(key.startswith("others") for key in states[0])
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    key = "conv1d.weight" if name == "mamba2" else "dt_bias"
    assert not torch.equal(states[1][key], states[1][f"others.0.{key}"])


@pytest.mark.parametrize("name", ["mamba2", "mamba3"])
def test_compiles_in_one_graph(name):
    mixer, x = build(name).float(), torch.randn(2, 6, DIM)
    orders = [scan_order(order, (2, 3)) for order in ("snake", "column_reverse")]
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, orders), mixer(x, orders))
    torch.testing.assert_close(compiled(x), mixer(x))
