"""The Triton kernels against the reference; collected by test_triton.py, in a process of its own.

On a machine with an NVIDIA GPU the kernels are compiled, elsewhere they run in Triton's interpreter, which that process
is set by its environment.
"""

import pytest
import torch

from transmamba.ops.scan import reference, triton
from transmamba.ops.scan.inputs import ScanGradients, ScanInputs
from transmamba.ops.scan.triton import tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FEATURES = {
    "plain": {},
    "a batch": {"b": 2, "segments": True, "initial": True},
    "a batch with shared decay": {"b": 2, "k": 2, "own": "B", "parameters_by_step": True, "initial": True},
    "one direction without orders": {"k": 1, "orders": False},
    "own u": {"own": "u"},
    "own B, shared C": {"own": "dt A B D dt_bias"},
    "shared dt": {"own": "A B C D dt_bias"},
    "one set of parameters": {"own": ""},
    "step parameters": {"parameters_by_step": True},
    "shared decay": {"own": "B", "parameters_by_step": True, "k": 3},
    "shared decay of an even number of directions": {"own": "B C D", "parameters_by_step": True, "k": 2},
    "shared decay without orders": {"own": "u B C D", "orders": False, "initial": True, "k": 3},
    "own steps beside a shared A": {"own": "dt B C", "parameters_by_step": True},
    "no skip, no bias": {"without": "D dt_bias"},
    "no softplus": {"softplus": False},
    "segments": {"segments": True},
    "segments without orders": {"segments": True, "orders": False, "initial": True},
    "initial state": {"initial": True},
    "merge": {"merge": True},
    "merged shared decay": {"merge": True, "own": "B", "parameters_by_step": True, "initial": True, "k": 3},
    "one token": {"length": 1},
    "one state": {"n": 1},
    "two states over several chunks": {"n": 2, "length": 19, "k": 2, "segments": True, "initial": True},
    "one state over several chunks": {"n": 1, "length": 33, "k": 2, "merge": True, "own": "dt A B C D dt_bias"},
    "several chunks": {"length": 19, "k": 2},
    "a multiple of the chunk": {"length": 32, "k": 1},
    "segments over several chunks": {"length": 19, "k": 1, "segments": True, "orders": False},
    "several blocks of channels": {"d": 67, "length": 3},
    "sixteen channels with shared decay": {
        "d": 19,
        "length": 9,
        "own": "B",
        "parameters_by_step": True,
        "n": 4,
        "k": 2,
    },
    "several blocks with shared decay": {
        "d": 67,
        "length": 3,
        "own": "B C D",
        "parameters_by_step": True,
        "n": 7,
        "k": 3,
    },
}


def problem(
    *, b=1, k=3, length=7, d=5, n=3, own="dt A B C D dt_bias", without="", orders=True, segments=False, initial=False,
    softplus=True, parameters_by_step=False, merge=False, dtype=torch.float32,
) -> ScanInputs:  # fmt: skip
    draw = lambda *shape: torch.randn(*shape, device=DEVICE)  # noqa: E731
    of = {name: k if name in own.split() else 1 for name in ("u", "dt", "A", "B", "C", "D", "dt_bias")}
    dt = draw(b, of["dt"], length, d) - 1 if softplus else 0.3 * draw(b, of["dt"], length, d).abs()
    permutations = torch.stack([torch.randperm(length, device=DEVICE) for _ in range(k)])
    return ScanInputs(
        draw(b, of["u"], length, d).to(dtype),
        dt.to(dtype),
        -draw(of["A"], n, d).exp(),
        draw(b, of["B"], length, n).to(dtype),
        draw(b, of["C"], length, n).to(dtype),
        None if "D" in without.split() else draw(of["D"], d),
        None if "dt_bias" in without else 0.3 * draw(of["dt_bias"], d).abs(),
        permutations if orders else None,
        torch.randint(0, 3, (b, length), device=DEVICE) if segments else None,
        draw(b, k, n, d) if initial else None,
        softplus,
        parameters_by_step,
        merge,
    )


def small(**options) -> ScanInputs:
    """Return a problem that the interpreter finishes sooner: two directions, a whole part and one more step."""
    return problem(**{"k": 2, "length": triton.PART + 1} | options)


def exact(p: ScanInputs, grad_y, grad_last) -> tuple:
    """Compute outputs and gradients of the reference in float64."""
    floats = [x is not None and x.is_floating_point() for x in p[:10]]
    inputs = [x.double().requires_grad_() if f else x for x, f in zip(p[:10], floats, strict=True)]
    y, last = reference.run(ScanInputs(*inputs, *p[10:]))
    loss = (y * grad_y.double()).sum() + (0 if grad_last is None else (last * grad_last.double()).sum())
    grads = iter(torch.autograd.grad(loss, [x for x, f in zip(inputs, floats, strict=True) if f]))
    values = [next(grads) if f else None for f in floats]
    return y.detach(), last.detach(), ScanGradients(*values[:7], values[9])


def error(got, expected) -> float:
    scale = expected.norm()
    return float((got.double() - expected).norm() / scale if scale else got.double().norm())


def compare(p: ScanInputs, with_last: bool = True, backend=triton, tolerances=TOLERANCE) -> None:
    y, last, saved = backend.forward(p, True)
    grad_y, grad_last = torch.randn_like(y), torch.randn_like(last) if with_last else None
    grads = backend.backward(p, saved, grad_y, grad_last)
    y_exact, last_exact, grads_exact = exact(p, grad_y, grad_last)
    tolerance = tolerances[p.u.dtype]
    assert y.dtype == p.u.dtype and error(y, y_exact) < tolerance
    assert last.is_contiguous() and error(last, last_exact) < tolerance
    for name, got, expected in zip(ScanGradients._fields, grads, grads_exact, strict=True):
        source = getattr(p, name)
        assert (got is None) == (source is None), name
        if got is not None:
            assert got.shape == source.shape and got.dtype == source.dtype, name
            assert error(got, expected) < tolerance, f"{name}: {error(got, expected)}"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())
def test_agrees_with_the_reference(options):
    compare(small(**options))


@pytest.mark.slow
@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())
def test_agrees_with_the_reference_in_more_directions_and_longer(options):
    compare(problem(**options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"own": "B", "parameters_by_step": True, "merge": True}])
def test_half_precision_loses_only_what_storing_loses(dtype, options):
    compare(small(dtype=dtype, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"initial": True, "orders": False},
        {"segments": True},
        {"k": 2, "own": "B", "parameters_by_step": True, "merge": True, "initial": True},
        {"own": ""},
    ],
)
def test_time_split_into_spans_changes_nothing(monkeypatch, options):
    monkeypatch.setattr(tiles, "programs", lambda device: 1000)
    monkeypatch.setattr(triton, "CHUNK", 2 * triton.PART)  # a span has four chunks
    p = small(**{"k": 1, "length": 4 * triton.CHUNK + 3, "d": 3, "n": 2, **options})
    assert tiles.cut(p, triton.CHUNK).grid[2] > 1
    compare(p)


@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_blocks_of_channels_taken_in_turn_change_nothing(monkeypatch, programs):
    monkeypatch.setattr(tiles, "programs", lambda device: programs)
    monkeypatch.setattr(tiles, "ENTRIES", 8)
    p = small(length=5, d=7, n=4, k=1)
    assert tiles.cut(p, triton.CHUNK).turns == {1: 4, 2: 2, 1000: 1}[programs]
    compare(p)


def test_last_state_may_be_unused():
    compare(small(), with_last=False)


def test_sums_over_directions_are_expanded_gradients():
    p = small(merge=True)
    y, _, saved = triton.forward(p, True)
    spread = torch.ones_like(y[:, :, :1, :1]).expand_as(y)
    apart, dense = (triton.backward(p, saved, g, None) for g in (spread, spread.contiguous()))
    torch.testing.assert_close(apart.u, dense.u)


def test_takes_and_returns_the_layout_with_time_innermost():
    p = small(k=1, orders=False)
    u, dt, B, C = (x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (p.u, p.dt, p.B, p.C))
    p = p._replace(u=u, dt=dt, B=B, C=C)
    y, _, saved = triton.forward(p, True)
    grads = triton.backward(p, saved, torch.randn_like(y), None)
    assert y.stride(-2) == grads.u.stride(-2) == grads.dt.stride(-2) == 1
    compare(p)


def test_takes_expanded_inputs():
    p = small()
    compare(p._replace(u=p.u[:, :, :1].expand_as(p.u), B=p.B[:, :, :, :1].expand_as(p.B)))


def test_softplus_keeps_the_digits_of_tiny_steps():
    p = small()
    compare(p._replace(dt=p.dt - 12))


def test_long_steps_forget_the_past():
    p = small()
    compare(p._replace(dt=30 + 30 * p.dt.abs()))


def test_saved_holds_the_state_before_each_chunk():
    p = small(k=3, length=2 * triton.CHUNK + 3)
    _, _, saved = triton.forward(p, True)
    _, state, nothing = triton.forward(_first_steps(p, 2 * triton.CHUNK), False)
    assert nothing.shape == (0,)
    torch.testing.assert_close(saved[:, :, 2], state)


def _first_steps(p: ScanInputs, steps: int) -> ScanInputs:
    """Stop the same scan early: put tokens in scan order, then cut."""
    along = lambda x: torch.stack([x.expand(-1, 3, -1, -1)[:, k, p.orders[k, :steps]] for k in range(3)], 1)  # noqa: E731
    return p._replace(u=along(p.u), dt=along(p.dt), B=along(p.B), C=along(p.C), orders=None)


@pytest.mark.parametrize("sizes", [{"b": 0}, {"length": 0}, {"d": 0}])
def test_empty_problems_have_empty_answers(sizes):
    p = small(initial=True, **sizes)
    y, last, saved = triton.forward(p, True)
    grads = triton.backward(p, saved, torch.empty_like(y), torch.ones_like(last))
    torch.testing.assert_close(last, p.initial_state)
    torch.testing.assert_close(grads.initial_state, torch.ones_like(last))
    assert all(g.shape == getattr(p, name).shape for name, g in zip(ScanGradients._fields, grads, strict=True))


def test_is_reproducible_and_leaves_its_inputs_alone():
    p = small(initial=True, segments=True)
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in p]
    runs = []
    for _ in range(2):
        y, last, saved = triton.forward(p, True)
        runs.append((y, last, *triton.backward(p, saved, torch.ones_like(y), None)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, p, strict=True) if isinstance(a, torch.Tensor))


def test_accepts_what_it_computes():
    assert triton.unsupported_reasons(small(length=1)) == []
