"""One of the four schedulers of a multiprocessor, simulated in order from the control codes.

Simulated: one instruction a cycle, stall counts, scoreboards, groups of copies to shared memory, the rates of the
pipes (those that a multiprocessor shares serve a quarter each), latencies; resident warps, the oldest ready one first.
Left out: bandwidth of HBM and L2, the instruction cache, bank conflicts, waiting for other warps at barriers, gaps
between launches. The figures of latencies are from the literature and were never checked against a card: trust ratios
of like kernels, not times.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from tests.benchmarks.sass.code import Instruction, Kernel, Loop

CLOCK = 1755.0  # cycles per microsecond of an H100
SCHEDULERS = 132 * 4
QUICK = {"float", "alu", "control", "uniform"}


class Cost(NamedTuple):
    """Pipe, its cycles for a warp, cycles to the result, cycles until operands are free."""

    pipe: str
    cycles: int
    result: int
    operands: int


class Result(NamedTuple):
    """Per warp and pass of the loop: cycles that pass, instructions issued."""

    cycles: float
    issued: float


def _width(opcode: str) -> int:
    return 4 if ".128" in opcode else 2 if ".64" in opcode else 1


def cost(opcode: str, load: int) -> Cost:
    """Return the cost of an instruction, where a load from global memory takes `load` cycles."""
    width = _width(opcode)
    table = (
        (r"MUFU|F2F(?!P)|I2F|F2I|FRND", Cost("special", 8, 22, 10)),
        (r"SHFL", Cost("memory", 4, 24, 12)),
        (r"LDS", Cost("memory", 4, 30, 12)),  # lanes share addresses: one wavefront
        (r"STS", Cost("memory", 4 * width, 30, 12)),
        (r"LDG|LD\.|LDL", Cost("memory", 4 * width, load, 16)),
        (r"STG|ST\.|STL|RED|ATOM", Cost("memory", 4 * width, 40, 16)),
        (r"U?LDC", Cost("constant", 2, 30, 12)),
        (r"FFMA|FMUL|FADD|FSWZADD", Cost("float", 1, 4, 4)),
        (r"HMMA", Cost("tensor", 4, 33, 16)),
        (r"IMAD|HFMA2|HADD2|HMUL2", Cost("float", 2, 5, 4)),
        (r"BAR|NOP|BRA|BSSY|BSYNC|WARPSYNC|EXIT|DEPBAR|LDGDEPBAR|CALL|RET|YIELD", Cost("control", 1, 10, 4)),
        (r"S2R|CS2R|R2UR|S2UR|VOTE|U[A-Z]", Cost("uniform", 2, 12, 6)),
    )
    return next((found for pattern, found in table if re.match(pattern, opcode)), Cost("alu", 2, 5, 4))


def trace(kernel: Kernel, loop: Loop, nested: dict[Loop, Sequence[int]], passes: int) -> list[int]:
    """List the instructions executed; -1 begins a pass. `nested` has trip counts of inner loops, pass by pass."""
    found = []
    for number in range(passes):
        found.append(-1)
        i = loop.first
        while i <= loop.last:
            inner = next((other for other in nested if other.first == i), None)
            if inner is None:
                found.append(i)
                i += 1
                continue
            found += list(range(inner.first, inner.last + 1)) * nested[inner][number % len(nested[inner])]
            i = inner.last + 1
    return [*found, -1]


class _Warp:
    def __init__(self) -> None:
        self.at, self.ready, self.scoreboards = 0, 0, [0] * 6
        self.marks: list[int] = []
        # when copies to shared memory land: the last one, and each group
        self.copied = 0
        self.groups: list[int] = []


def simulate(kernel: Kernel, loop: Loop, warps: int, *, nested=None, passes: int = 6, load: int = 600) -> Result:
    """Simulate the steady state of a loop with that many warps on a scheduler."""
    path = trace(kernel, loop, nested or {}, passes)
    costs = [cost(instruction.opcode, load) for instruction in kernel.instructions]
    all_warps, pipes = [_Warp() for _ in range(warps)], {}
    time = issued = current = 0
    while True:
        best, soonest = None, None
        for k in range(warps):
            number = (current + k) % warps
            warp = all_warps[number]
            while warp.at < len(path) and path[warp.at] < 0:
                warp.marks.append(time)
                warp.at += 1
            if warp.at == len(path):
                continue
            instruction = kernel.instructions[path[warp.at]]
            ready = _ready(warp, instruction, costs[path[warp.at]], pipes)
            if ready <= time:
                best = number
                break
            soonest = ready if soonest is None else min(soonest, ready)
        if best is None and soonest is None:
            break
        if best is None:
            time = max(time + 1, soonest)
            continue
        _issue(
            all_warps[best], kernel.instructions[path[all_warps[best].at]], costs[path[all_warps[best].at]], pipes, time
        )
        current, issued, time = best, issued + 1, time + 1
    spans = [(warp.marks[-1] - warp.marks[1]) / (len(warp.marks) - 2) for warp in all_warps]
    return Result(sum(spans) / len(spans), issued / passes / warps)


def _ready(warp: _Warp, instruction: Instruction, price: Cost, pipes: dict[str, int]) -> int:
    waited = [time for bit, time in enumerate(warp.scoreboards) if instruction.wait >> bit & 1]
    if allowed := re.match(r"DEPBAR\.LE \w+, (\w+)", instruction.text):
        waited += warp.groups[: len(warp.groups) - int(allowed.group(1), 16)]
    # a short queue stands before the slow pipes
    queue = pipes.get(price.pipe, 0) - (0 if price.pipe in QUICK else 4 * price.cycles)
    return max([warp.ready, queue, *waited])


def _issue(warp: _Warp, instruction: Instruction, price: Cost, pipes: dict[str, int], time: int) -> None:
    start = max(time, pipes.get(price.pipe, 0))
    pipes[price.pipe] = start + price.cycles
    for barrier, latency in ((instruction.write_barrier, price.result), (instruction.read_barrier, price.operands)):
        if barrier < 6:
            warp.scoreboards[barrier] = max(warp.scoreboards[barrier], start + latency)
    if instruction.opcode.startswith("LDGSTS"):
        warp.copied = start + price.result
    if instruction.opcode.startswith("LDGDEPBAR"):
        warp.groups.append(warp.copied)
    warp.ready = time + max(1, instruction.stall)
    warp.at += 1


def microseconds(cycles_by_warps, blocks: int, warps_of_block: int, resident: int, passes: float) -> float:
    """Time of a launch: waves of as many warps as fit a scheduler, the fullest one counting.

    `cycles_by_warps` gives the cycles of a pass for a number of warps.
    """
    left, time = blocks * warps_of_block / SCHEDULERS, 0.0
    while left > 1e-6:
        warps = min(resident, max(1, -int(-left // 1)))
        time += cycles_by_warps(warps) * passes
        left -= warps
    return time / CLOCK
