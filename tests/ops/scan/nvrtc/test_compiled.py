"""The kernels compiled by NVRTC on a machine that may have no GPU: they lower, and their machine code is as counted."""

import itertools

import pytest

from tests.benchmarks.sass import code, scan
from transmamba.ops.scan.nvrtc import compiler
from transmamba.ops.scan.nvrtc.variants import (
    BACKWARD,
    FORWARD,
    SHARED_BACKWARD,
    SHARED_FORWARD,
    Variant,
    power,
    single_variant,
)

missing = [compiler.library()[1]] if compiler.library()[0] is None else []
missing += ["package triton, which ships nvdisasm, is not installed"] if code.tool("nvdisasm") is None else []
pytestmark = pytest.mark.skipif(bool(missing), reason="; ".join(missing))
CAPABILITIES = ("80", "90", "100")
FLAGS = (
    ("SOFTPLUS", "PAIRED"),
    ("ORDERS", "BY_STEP", "RESTART"),
    ("SOFTPLUS", "ORDERS", "RESTART", "PAIRED", "MERGED"),
)


def variant(kind: str, states: int, dtype: int, flags: tuple[str, ...]) -> Variant:
    flags = tuple(flag for flag in flags if flag != "FULL" or dtype)
    if states == 1:
        apart = tuple(flag for flag in flags if flag != "MERGED")
        found = single_variant(kind, dtype, 4, (*apart, "WIDE") if "PAIRED" in flags else apart)
        return found if apart == flags else found.merging()
    flags = tuple(flag for flag in flags if flag != "MERGED")
    if kind.startswith("shared"):
        shapes = SHARED_BACKWARD if kind == "shared_backward" else SHARED_FORWARD
        one = ("ONE",) if "PAIRED" in flags else ()
        return Variant(kind, dtype, states, shapes[power(states)], (*flags, *one), directions=4)
    return Variant(kind, dtype, states, (BACKWARD if kind == "backward" else FORWARD)[power(states)], flags)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("kind", "states"),
    [
        ("forward", 16),
        ("backward", 16),
        ("forward", 1),
        ("backward", 1),
        ("shared_forward", 16),
        ("shared_backward", 16),
    ],
)
def test_common_variants_compile(kind, states, capability):
    chosen = variant(kind, states, 1, FLAGS[0])
    names = set(code.usage(compiler.compile_cubin(chosen.options, capability)))
    summaries = {"summarise", "summarise_adjoint", "chain", "chain_adjoint"} if kind == "forward" else set()
    assert names == {f"scan_{kind.removeprefix('shared_')}"} | summaries


@pytest.mark.parametrize("dtype", [0, 1], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("directions", [1, 8])
def test_one_state_compiles_for_few_and_many_directions(directions, dtype):
    for kind in ("forward", "backward"):
        chosen = single_variant(kind, dtype, directions, ("SOFTPLUS", "ORDERS", "PAIRED", "WIDE"))
        chosen = chosen.merging() if directions > 1 else chosen
        used = code.usage(compiler.compile_cubin(chosen.options, "90"))[f"scan_{kind}"]
        assert used.stack == 0 and chosen.shared <= 99 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("states", [1, 2, 3, 4, 8, 16, 20, 32, 64, 128, 256])
def test_every_variant_compiles(states, kind, capability):
    kinds = [kind, f"shared_{kind}"] if power(states) in SHARED_FORWARD else [kind]
    for each, dtype, flags in itertools.product(kinds, (0, 1, 2), FLAGS):
        chosen = variant(each, states, dtype, flags)
        found = code.usage(compiler.compile_cubin(chosen.options, capability))[f"scan_{kind}"]
        # what a block of any of these GPUs may have
        assert found.shared + chosen.shared <= 99 * 1024


def slots(shape: str, kind: str, name: str) -> scan.Figures:
    return scan.examine(scan.SHAPES[shape], kind, name)


def test_issue_slots_and_registers_stay_as_counted():
    forward, backward = slots("vim", "forward", "scan_forward"), slots("vim", "backward", "scan_backward")
    assert forward.usage.stack == 0 and forward.issue <= 10.0
    assert backward.usage.stack == 0 and backward.issue <= 24.5
    summary = slots("lm", "forward", "summarise")
    assert summary.usage.stack == 0 and slots("lm", "forward", "scan_forward").issue + summary.issue <= 16.6
    for kind, name, issue in (("forward", "scan_forward", 6.6), ("backward", "scan_backward", 19.5)):
        found = slots("plain", kind, name)
        assert found.usage.stack <= 32 and found.issue <= issue
    for kind, name, issue in (("forward", "scan_forward", 38.7), ("backward", "scan_backward", 113.3)):
        found = slots("vmamba", kind, name)
        assert found.usage.stack <= 32 and found.issue <= issue


# of the Triton kernels' simulated time; the summary of a language model's spans is bound by its exponentials
AT_LEAST = {"vim": (3.0, 3.7), "lm": (2.1, 2.55), "plain": (6.1, 7.2), "vmamba": (4.6, 10.0)}


@pytest.mark.parametrize("shape", scan.SHAPES)
def test_simulated_times_beat_triton_and_mamba_ssm(shape):
    for side, kind in enumerate(("forward", "backward")):
        time = scan.total_time(scan.SHAPES[shape], kind)
        assert time * AT_LEAST[shape][side] <= scan.TRITON[shape][side]
        assert time < scan.MAMBA_SSM[shape][side]
