"""The CUDA kernels against the reference, every thread of them on a CPU, with the cases of the Triton kernels."""

import functools

import pytest
import torch

from tests.ops.rounding import BY_BACKEND, HALVES, check
from tests.ops.scan.nvrtc import emulator
from tests.ops.scan.triton import triton_cases
from tests.ops.scan.triton.triton_cases import FEATURES, problem
from transmamba.ops.scan import nvrtc
from transmamba.ops.scan.nvrtc.variants import shared_variant_of

pytestmark = emulator.needs_compiler
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
compare = functools.partial(triton_cases.compare, backend=nvrtc, tolerances=TOLERANCE)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(nvrtc, "launch", emulator.launch)


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())
def test_agrees_with_the_reference(options):
    compare(problem(**options))


@pytest.mark.parametrize("states", [2, 3, 4, 7, 8, 16, 20, 32, 64, 100, 128, 256])
def test_takes_any_number_of_states(states):
    compare(problem(n=states, d=6, k=2, length=21, segments=True, initial=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"own": "B", "parameters_by_step": True, "merge": True}, {"n": 16, "d": 40}])
def test_half_precision_loses_only_what_storing_loses(dtype, options):
    compare(problem(dtype=dtype, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"initial": True, "orders": False},
        {"segments": True},
        {"k": 2, "own": "B", "parameters_by_step": True, "merge": True, "initial": True},
        {"own": ""},
        {"n": 16, "d": 40, "length": 100, "segments": True, "initial": True},
    ],
)
def test_time_split_into_spans_changes_nothing(monkeypatch, options):
    monkeypatch.setattr(nvrtc, "multiprocessors", lambda device: 1000)
    seen = []

    def launch(variant, name, *rest):
        seen.append(name)
        emulator.launch(variant, name, *rest)

    monkeypatch.setattr(nvrtc, "launch", launch)
    compare(problem(**{"k": 1, "length": 67, "d": 3, "n": 2, **options}))
    assert {"summarise", "chain", "summarise_adjoint", "chain_adjoint"} <= set(seen)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 4, "d": 72, "length": 70, "merge": True, "dtype": torch.bfloat16},
        {"k": 5, "d": 64, "length": 33, "merge": True, "segments": True},
        {"k": 1, "d": 136, "length": 37, "initial": True, "dtype": torch.float16},
        {"k": 3, "d": 8, "length": 9, "parameters_by_step": True},
        {"k": 9, "d": 8, "length": 9, "without": "D dt_bias"},
    ],
)
def test_rows_of_one_state_are_read_by_16_bytes(monkeypatch, options):
    seen = []

    def launch(variant, *rest):
        seen.append("WIDE" in variant.flags)
        emulator.launch(variant, *rest)

    monkeypatch.setattr(nvrtc, "launch", launch)
    p = problem(**{"n": 1, **options})
    compare(p)
    assert all(seen)
    seen.clear()
    # a view that begins in the middle of 16 bytes gives the same
    u = torch.cat([p.u, p.u], -1)[..., 2 : 2 + p.u.shape[3]].copy_(p.u)
    compare(p._replace(u=u))
    assert not any(seen)


SHARED = {"own": "B", "parameters_by_step": True}


@pytest.mark.parametrize(
    "options",
    [
        {"n": 16, "k": 4, "d": 41, "length": 21, "initial": True, "merge": True},
        {"n": 16, "k": 4, "d": 40, "length": 8, "own": "u B C D"},
        {"n": 8, "k": 2, "d": 70, "length": 19, "without": "D dt_bias", "softplus": False},
        {"n": 7, "k": 3, "d": 5, "length": 1, "orders": False, "initial": True, "b": 2},
        {"n": 20, "k": 3, "d": 17, "length": 16, "own": "B C D"},
        {"n": 32, "k": 4, "d": 18, "length": 9, "dtype": torch.bfloat16},
        {"n": 16, "k": 4, "d": 40, "length": 21, "dtype": torch.float16, "merge": True},
    ],
)
def test_directions_that_share_decays_share_a_block(monkeypatch, options):
    kinds = []

    def launch(variant, *rest):
        kinds.append(variant.kind)
        emulator.launch(variant, *rest)

    monkeypatch.setattr(nvrtc, "launch", launch)
    compare(problem(**{**SHARED, **options}))
    assert kinds == ["shared_forward", "shared_backward"]


@pytest.mark.parametrize(
    "options", [{"own": "dt B"}, {"own": "A B"}, {"own": "B dt_bias"}, {"k": 5}, {"k": 1}, {"n": 4}, {"n": 33}]
)
def test_other_directions_have_a_block_each(options):
    p = problem(**{"n": 16, "k": 4, **SHARED, **options})
    assert shared_variant_of(p, "forward", [p.u, p.dt, p.B, p.C]) is None
    apart = problem(**{"n": 16, "k": 4, **SHARED, "parameters_by_step": False})
    assert shared_variant_of(apart, "backward", [p.u]) is None
    restarting = problem(**{"n": 16, "k": 4, **SHARED, "segments": True})
    assert shared_variant_of(restarting, "forward", [p.u]) is None


def test_shared_decays_over_spans_of_time(monkeypatch):
    monkeypatch.setattr(nvrtc, "multiprocessors", lambda device: 1000)
    seen = []

    def launch(variant, name, *rest):
        seen.append((variant.kind, name))
        emulator.launch(variant, name, *rest)

    monkeypatch.setattr(nvrtc, "launch", launch)
    compare(problem(**SHARED, n=8, k=2, d=3, length=67, initial=True))
    assert seen[:3] == [("forward", "summarise"), ("forward", "chain"), ("shared_forward", "scan_forward")]
    assert seen[-3:] == [
        ("forward", "summarise_adjoint"),
        ("forward", "chain_adjoint"),
        ("shared_backward", "scan_backward"),
    ]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"n": 16, "d": 40, "length": 37, "k": 2, "segments": True},
        {"n": 4, "length": 9},
        {"n": 16, "d": 40, "length": 37, "k": 4, **SHARED},
        {"n": 1, "d": 64, "length": 41, "k": 4, "merge": True, "dtype": torch.bfloat16},
    ],
)
def test_no_order_of_threads_between_barriers_changes_anything(monkeypatch, options, seed):
    p = problem(**options)
    runs = []
    for order in (0, seed):
        monkeypatch.setattr(nvrtc, "launch", functools.partial(emulator.launch, seed=order))
        y, last, saved = nvrtc.forward(p, True)
        runs.append((y, last, saved, *nvrtc.backward(p, saved, torch.ones_like(y), torch.ones_like(last))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True) if a is not None)


@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("case", [c for c in BY_BACKEND if "scan" in c.__name__ and "cross" not in c.__name__])
def test_half_precision_is_rounded_once(monkeypatch, case, dtype):
    monkeypatch.setattr(nvrtc, "unsupported_reasons", lambda problem: [])
    check(case, dtype, backend="nvrtc")
