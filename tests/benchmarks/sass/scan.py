"""The kernels of the scan, counted and simulated without a card, a Markdown table. Static figures: nothing is measured.

    python -m tests.benchmarks.sass.scan [--shapes vim lm plain vmamba]

Needs the wheels nvidia-cuda-nvrtc-cu12 and triton, whose nvdisasm reads the machine code. Triton and mamba-ssm: our
Triton kernels before 2026-11-28 and mamba-ssm e9594ce, compiled and simulated the same way on 2026-11-28.
"""

import argparse
import functools
from typing import NamedTuple

from tests.benchmarks.sass import code, simulation
from transmamba.ops.scan.nvrtc import compiler
from transmamba.ops.scan.nvrtc.variants import (
    BACKWARD,
    CHUNK,
    FORWARD,
    SHARED_BACKWARD,
    SHARED_FORWARD,
    Variant,
    power,
    single_variant,
    spans_of,
)

SUMMED, STORES = 16, 8  # tokens of a pass of `sum_directions`, a store for two
BFLOAT16, CAPABILITY, MULTIPROCESSORS = 1, "90", 132


class Sizes(NamedTuple):
    """Sizes of a scan, as in bench_gpu.py."""

    batch: int
    length: int
    channels: int
    states: int
    directions: int


SHAPES = {
    "vim": Sizes(64, 197, 384, 16, 1), "lm": Sizes(1, 2048, 1536, 16, 1), "plain": Sizes(64, 196, 384, 16, 4),
    "vmamba": Sizes(64, 3136, 192, 1, 4),
}  # fmt: skip
# microseconds, forward and backward
TRITON = {"vim": (92, 325), "lm": (73, 180), "plain": (538, 2004), "vmamba": (1243, 5684)}
MAMBA_SSM = {"vim": (191, 540), "lm": (50, 178), "plain": (770, 2160), "vmamba": (625, 1475)}


class Figures(NamedTuple):
    """Of one kernel: usage, issue slots per unit, simulated time. The unit is `UNITS`."""

    usage: code.Usage
    issue: float
    microseconds: float


def flags(sizes: Sizes, kind: str) -> tuple[str, ...]:
    """Return the flags of the variant that takes these sizes."""
    several = ("ORDERS",) if sizes.directions > 1 else ()
    by_step = ("BY_STEP",) if sizes.directions > 1 and sizes.states > 1 else ()
    full = ("FULL",) if sizes.directions > 1 else ()  # directions are summed, and rounded after that
    saves = ("SAVE",) if kind == "forward" else ()  # states for the backward
    wide = ("WIDE",) if sizes.states == 1 else ()
    return ("SOFTPLUS", *several, *by_step, "PAIRED", *full, *wide, *saves)


def variant(sizes: Sizes, kind: str) -> Variant:
    """Return the variant that takes these sizes, bfloat16."""
    if sizes.states == 1:
        found = single_variant(kind, BFLOAT16, sizes.directions, flags(sizes, kind))
        return found.merging() if sizes.directions > 1 else found
    if sizes.directions > 1:  # PlainMamba's directions share step sizes, decays, u and C
        shared = tuple(flag for flag in flags(sizes, kind) if flag != "BY_STEP")
        shape = (SHARED_FORWARD if kind == "forward" else SHARED_BACKWARD)[power(sizes.states)]
        return Variant(f"shared_{kind}", BFLOAT16, sizes.states, shape, (*shared, "ONE"), sizes.directions)
    shapes = BACKWARD if kind == "backward" else FORWARD
    return Variant(kind, BFLOAT16, sizes.states, shapes[power(sizes.states)], flags(sizes, kind))


@functools.cache
def compiled(chosen: Variant) -> bytes:
    """Compile the variant for an H100."""
    return compiler.cached_cubin(chosen.options, CAPABILITY)


@functools.cache
def kernels(chosen: Variant) -> dict[str, code.Kernel]:
    """Disassemble its kernels."""
    return code.disassemble(compiled(chosen))


def main_loop(kernel: code.Kernel) -> code.Loop:
    """Find the innermost loop with the most exponentials."""
    inner = [loop for loop in kernel.loops if not any(loop.holds(other) for other in kernel.loops)]
    return max(inner, key=lambda loop: kernel.count(loop)["exp2"])


def sum_loop(kernel: code.Kernel) -> code.Loop:
    """Find the loop that sums directions: the only one that stores `STORES` times and has no exponential."""
    counts = {loop: kernel.count(loop) for loop in kernel.loops}
    return next(loop for loop, found in counts.items() if not found["exp2"] and found["global store"] == STORES)


def steps_of(chosen: Variant) -> int:
    """Count the steps of a pass of the main loop."""
    if chosen.single:
        return 32 if chosen.kind == "single_forward" else 2 * CHUNK
    return CHUNK if chosen.kind.endswith("backward") else chosen.shape.steps


@functools.cache
def cycles(chosen: Variant, name: str, warps: int) -> float:
    """Simulate the cycles of a pass of the main loop, and of its part of the sum over directions."""
    kernel = kernels(chosen)[name]
    found = simulation.simulate(kernel, main_loop(kernel), warps).cycles
    if "MERGED" in chosen.flags:
        # a warp sums every so many-th token, those that have not scanned as well
        tokens, times = steps_of(chosen) / chosen.shape.warps, chosen.shape.warps // chosen.scanning
        found += simulation.simulate(kernel, sum_loop(kernel), times * warps).cycles * tokens / SUMMED
    return found


def examine(sizes: Sizes, kind: str, name: str) -> Figures:
    """Examine one kernel: issue slots per warp-element, or with one state per step and warp."""
    chosen = variant(sizes, kind)
    kernel, used = kernels(chosen)[name], code.usage(compiled(chosen))[name]
    steps = steps_of(chosen)
    held = chosen.shape.lane_states * chosen.shape.lane_channels
    # with one state the unit is a step of 64 channels, two for a lane, however the lanes are dealt
    elements = steps * (held / 2 if chosen.single else held * chosen.directions)
    issue = sum(kernel.count(main_loop(kernel)).values()) / elements
    if "MERGED" in chosen.flags:
        issue += sum(kernel.count(sum_loop(kernel)).values()) / (SUMMED * chosen.directions)
    groups, blocks = chosen.groups(sizes.batch, sizes.directions), -(-sizes.channels // chosen.channels)
    span, spans = spans_of(chosen, groups, sizes.length, sizes.channels, MULTIPROCESSORS)
    if name == "summarise":
        spans -= 1
    # registers are handed out by eight to a thread
    resident = 65536 // (-(-used.registers // 8) * 8 * chosen.threads)
    resident = max(1, min(resident, 64 // chosen.shape.warps)) * chosen.scanning // 4
    passes = -(-min(span, sizes.length) // steps)
    time = simulation.microseconds(
        functools.partial(cycles, chosen, name), groups * blocks * spans, chosen.scanning, resident, passes
    )
    return Figures(used, issue, time)


def kernels_of(sizes: Sizes, kind: str) -> list[tuple[str, str]]:
    """Return kind of variant and name of every kernel that a pass launches, but the short chain of spans."""
    chosen = variant(sizes, kind)
    groups = chosen.groups(sizes.batch, sizes.directions)
    spans = spans_of(chosen, groups, sizes.length, sizes.channels, MULTIPROCESSORS)[1]
    summary = "summarise" if kind == "forward" else "summarise_adjoint"
    return ([("forward", summary)] if spans > 1 else []) + [(kind, f"scan_{kind}")]


def total_time(sizes: Sizes, kind: str) -> float:
    """Add up the simulated microseconds of a pass."""
    return sum(examine(sizes, *kernel).microseconds for kernel in kernels_of(sizes, kind))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    print(f"sm_{CAPABILITY}, NVRTC {compiler.version()}, bfloat16; static figures, nothing is measured\n")
    print("| shape, pass | kernel | registers | stack bytes | issue slots | simulated us | Triton | mamba-ssm |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for shape in parser.parse_args().shapes:
        for side, kind in enumerate(("forward", "backward")):
            for variant_kind, name in kernels_of(SHAPES[shape], kind):
                found = examine(SHAPES[shape], variant_kind, name)
                peers = (TRITON[shape][side], MAMBA_SSM[shape][side])
                columns = (
                    shape + ", " + kind,
                    name,
                    *found.usage[:2],
                    f"{found.issue:.1f}",
                    f"{found.microseconds:.0f}",
                )
                print("|", " | ".join(map(str, (*columns, *peers))), "|", flush=True)


if __name__ == "__main__":
    main()
