import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden import golden
from transmamba.ops import ssd_scan, ssd_step

OPS = golden("ops_a")
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def inputs(batch=2, length=11, heads=6, channels=3, groups=2, states=5, dtype=torch.float64):
    tensors = {
        "x": torch.randn(batch, length, heads, channels, dtype=dtype),
        "dt": torch.randn(batch, length, heads, dtype=dtype),
        "A": -torch.rand(heads, dtype=dtype) - 0.1,
        "B": torch.randn(batch, length, groups, states, dtype=dtype),
        "C": torch.randn(batch, length, groups, states, dtype=dtype),
        "D": torch.randn(heads, dtype=dtype),
        "dt_bias": torch.randn(heads, dtype=dtype),
        "initial_state": torch.randn(batch, heads, channels, states, dtype=dtype),
    }
    return {name: x.requires_grad_() for name, x in tensors.items()}


def definition(x, dt, A, B, C, D, dt_bias, initial_state, limit=(0.0, math.inf)):
    """Compute the recurrence of the module docstring, token by token."""
    H, outputs = initial_state, []
    share = x.shape[2] // B.shape[2]
    for t in range(x.shape[1]):
        step = torch.log1p(torch.exp(dt[:, t] + dt_bias)).clamp(*limit)
        B_t, C_t = (z[:, t].repeat_interleave(share, 1) for z in (B, C))
        new = torch.einsum("bh,bhp,bhn->bhpn", step, x[:, t], B_t)
        H = torch.exp(step * A)[..., None, None] * H + new
        outputs.append(torch.einsum("bhpn,bhn->bhp", H, C_t) + D[:, None] * x[:, t])
    return (torch.stack(outputs, 1) if outputs else x), H


def values_and_gradients(function, tensors, **options):
    y, last = function(**tensors, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z.dtype) for z in (y, last)]
    loss = (y * weights[0]).sum() + (last * weights[1]).sum()
    grads = torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True)
    return {"y": y, "last": last, **dict(zip(tensors, grads, strict=True))}


def scan(**arguments):
    return ssd_scan(**arguments, dt_softplus=True, return_last_state=True)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 9])
def test_chunks_give_the_recurrence_at_any_length(length):
    tensors = inputs(length=length)
    torch.testing.assert_close(
        values_and_gradients(scan, tensors, chunk_size=4), values_and_gradients(definition, tensors)
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 3), st.integers(0, 40), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 17)
)
def test_chunk_size_does_not_change_the_result(batch, length, share, groups, states, chunk_size):
    tensors = inputs(batch, length, share * groups, 2, groups, states)
    one, other = (values_and_gradients(scan, tensors, chunk_size=size) for size in (chunk_size, 64))
    torch.testing.assert_close(one, other)


def test_gradients_are_those_of_finite_differences():
    tensors = inputs(1, 5, 2, 2, 1, 2)

    def packed(*arguments):
        return scan(**dict(zip(tensors, arguments, strict=True)), chunk_size=2, seq_idx=torch.tensor([[0, 0, 0, 1, 1]]))

    assert torch.autograd.gradcheck(packed, tuple(tensors.values()))


@DTYPES
@pytest.mark.parametrize("case", ["ssd_plain", "ssd_full", "ssd_dtlimit_Dhdim"])
def test_outputs_and_gradients_are_the_official_ones(case, dtype):
    tensors = {name: x.requires_grad_() for name, x in OPS.part(f"{case}/in", dtype).items()}
    cotangent, options = tensors.pop("cotangent"), OPS.meta["cases"][case]
    z = tensors.get("z")
    y = ssd_scan(
        **{name: x for name, x in tensors.items() if name != "z"},
        dt_softplus=options.get("dt_softplus", False),
        dt_limit=tuple(options.get("dt_limit", (0.0, math.inf))),
        chunk_size=4,
    )
    y = y if z is None else y * torch.nn.functional.silu(z)
    OPS.check(f"{case}/out/y", y)
    for name, grad in zip(tensors, torch.autograd.grad((y * cotangent).sum(), list(tensors.values())), strict=True):
        OPS.check(f"{case}/grad/{name}", grad)


@pytest.mark.parametrize("per_channel", [False, True])
def test_steps_give_what_the_scan_gives(per_channel):
    tensors = {name: x.detach() for name, x in inputs().items()}
    state = tensors.pop("initial_state")
    if per_channel:
        tensors["D"] = torch.randn(6, 3, dtype=torch.float64)
    options = {"dt_softplus": True, "dt_limit": (0.3, 0.9)}
    expected = ssd_scan(**tensors, initial_state=state, return_last_state=True, **options)
    A, D, bias = (tensors.pop(name) for name in ("A", "D", "dt_bias"))
    outputs = []
    for t in range(11):
        y, state = ssd_step(state, A=A, D=D, dt_bias=bias, **{k: v[:, t] for k, v in tensors.items()}, **options)
        outputs.append(y)
    torch.testing.assert_close((torch.stack(outputs, 1), state), expected)


def test_packed_is_separate_is_padded():
    lengths = (5, 1, 7, 3)
    tensors = {name: x.detach() for name, x in inputs(1, sum(lengths)).items() if name != "initial_state"}
    by_token = {name: tensors.pop(name) for name in ("x", "dt", "B", "C")}
    seq_idx = torch.repeat_interleave(torch.tensor([0, 1, 0, 2]), torch.tensor(lengths))[None]
    packed, last = scan(**by_token, **tensors, seq_idx=seq_idx, chunk_size=4)
    pieces = [
        dict(zip(by_token, parts, strict=True))
        for parts in zip(*(x.split(lengths, 1) for x in by_token.values()), strict=True)
    ]
    for i, (piece, part) in enumerate(zip(pieces, packed.split(lengths, 1), strict=True)):
        alone, end = scan(**piece, **tensors, chunk_size=4)
        torch.testing.assert_close(part, alone)
        for before in (0, 9 - lengths[i]):
            padded = {
                k: torch.nn.functional.pad(v, (0, 0) * (v.dim() - 2) + (before, 9 - lengths[i] - before), value=3.0)
                for k, v in piece.items()
            }
            mask = (torch.arange(9) >= before) & (torch.arange(9) < before + lengths[i])
            y, state = scan(**padded, **tensors, mask=mask[None], chunk_size=4, dt_limit=(0.01, 100.0))
            torch.testing.assert_close((y[:, mask], state), (alone, end))
            assert not y[:, ~mask].any()
    torch.testing.assert_close(last, end)


def test_pieces_continued_from_the_last_state_give_the_whole():
    tensors = inputs(length=13)
    by_token = ("x", "dt", "B", "C")
    y, last = scan(**tensors, chunk_size=4)
    first = {k: v[:, :6] if k in by_token else v for k, v in tensors.items()}
    second = {k: v[:, 6:] if k in by_token else v for k, v in tensors.items()}
    begin, second["initial_state"] = scan(**first, chunk_size=4)
    end, state = scan(**second, chunk_size=4)
    torch.testing.assert_close((torch.cat([begin, end], 1), state), (y, last))


def test_digits_survive_a_huge_step():
    tensors = inputs(1, 30, 2, 2, 1, 3, torch.float32)
    with torch.no_grad():
        tensors["dt"][:, 7] = 1e6
        tensors["A"].fill_(-1.0)
        tensors["x"][:, 7] = 0.0
    exact = {name: x.double() for name, x in tensors.items()}
    y, _ = scan(**tensors)
    torch.testing.assert_close(y.double(), scan(**exact, chunk_size=1)[0], rtol=1e-4, atol=1e-4)


def test_bfloat16_inputs_are_scanned_in_float32_also_under_autocast():
    tensors = {name: x.detach().bfloat16() for name, x in inputs(length=40).items()}
    expected, last = scan(**{name: x.float() for name, x in tensors.items()})
    with torch.autocast("cpu", torch.bfloat16):
        y, state = scan(**tensors)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close((y, state), (expected.bfloat16(), last))


def test_compiles_in_one_graph():
    tensors = {name: x.detach() for name, x in inputs(dtype=torch.float32).items()}
    compiled = torch.compile(scan, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**tensors, chunk_size=4), scan(**tensors, chunk_size=4))


@pytest.mark.parametrize("function", ["scan", "step"])
def test_groups_must_divide_the_heads(function):
    x, dt, A, B = torch.zeros(1, 5, 3, 2), torch.zeros(1, 5, 3), torch.zeros(3), torch.zeros(1, 5, 2, 7)
    with pytest.raises(ValueError, match="groups of B and C must divide the heads: got 2 groups, 3 heads"):
        if function == "scan":
            ssd_scan(x, dt, A, B, B)
        else:
            ssd_step(torch.zeros(1, 3, 2, 7), x[:, 0], dt[:, 0], A, B[:, 0], B[:, 0])
