"""A kernel's machine code by the nvdisasm that Triton ships: instructions, control codes, loops, pipes."""

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# pipes by the first pattern that an opcode begins with
PIPES = (
    ("exp2", r"MUFU\.EX2"), ("special", r"MUFU|F2F\.|I2F|F2I"),
    ("float", r"FFMA|FMUL|FADD|FMNMX|FSEL|FSETP|FSET|FSWZADD|FCHK"), ("shuffle", r"SHFL"),
    ("local", r"LDL|STL"), ("global load", r"LDG|LD\.E"), ("global store", r"STG|ST\.E"), ("shared load", r"LDS"),
    ("shared store", r"STS"), ("tensor", r"HMMA"), ("barrier", r"BAR|WARPSYNC|DEPBAR|LDGDEPBAR"),
    ("branch", r"BRA|BSSY|BSYNC|EXIT|CALL|RET|BREAK"), ("constant", r"LDC|ULDC|S2R|CS2R|S2UR"),
)  # fmt: skip


class Instruction(NamedTuple):
    """Text, and the compiler's hints to the scheduler from the control code."""

    text: str
    stall: int  # cycles before the warp's next instruction
    write_barrier: int  # scoreboard freed when the result is there; 7 is none
    read_barrier: int  # scoreboard freed when the operands have been read
    wait: int  # scoreboards to wait for, one bit each

    @property
    def opcode(self) -> str:
        """The operation with its modifiers, without a predicate."""
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0]


class Loop(NamedTuple):
    """First and last instruction."""

    first: int
    last: int

    def holds(self, other: "Loop") -> bool:
        """Check whether `other` is inside this one."""
        return self != other and self.first <= other.first and other.last <= self.last


class Usage(NamedTuple):
    """The resources of a kernel: registers of a thread, bytes of stack (spills), bytes of static shared memory."""

    registers: int
    stack: int
    shared: int


class Kernel(NamedTuple):
    """Instructions and loops of a kernel."""

    instructions: list[Instruction]
    loops: list[Loop]

    def count(self, loop: Loop, nested: dict[Loop, float] | None = None) -> Counter:
        """Count instructions by pipe in one pass of the loop; loops inside it count `nested` times, once by default."""
        inner = [other for other in self.loops if loop.holds(other)]
        found: Counter = Counter()
        for i in range(loop.first, loop.last + 1):
            times = 1.0
            for other in inner:
                if other.first <= i <= other.last:
                    times *= (nested or {}).get(other, 1.0)
            found[pipe(self.instructions[i].opcode)] += times
        return found


def tool(name: str) -> Path | None:
    """Find a program that Triton ships; None if there is none."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "backends" / "nvidia" / "bin" / name
    return path if path.exists() else None


def pipe(opcode: str) -> str:
    """Return the pipe that takes an instruction."""
    return next((name for name, pattern in PIPES if re.match(pattern, opcode)), "integer")


def _run(name: str, binary: bytes, *options: str) -> str:
    program = tool(name)
    assert program is not None, f"package triton, which ships {name}, is not installed"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run([program, *options, file.name], capture_output=True, text=True, check=True).stdout


def usage(binary: bytes) -> dict[str, Usage]:
    """Read the usage of each kernel."""
    text = _run("cuobjdump", binary, "--dump-resource-usage")
    found = re.findall(r"Function (\w+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    return {name: Usage(int(reg), int(stack) + int(local), int(shared)) for name, reg, stack, shared, local in found}


def disassemble(binary: bytes) -> dict[str, Kernel]:
    """Disassemble the kernels of a binary, by name."""
    text = _run("nvdisasm", binary, "-c", "-hex")
    sections = re.split(r"\.section\s+\.text\.(\w+)", text)
    return {name: _parse(body) for name, body in zip(sections[1::2], sections[2::2], strict=True)}


def _parse(text: str) -> Kernel:
    texts: list[str] = []
    words: list[int] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"^(\.L_\S+):", line):
            labels[label.group(1)] = len(texts)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);\s*/\* 0x[0-9a-f]{16} \*/", line):
            texts.append(found.group(1))
        elif found := re.match(r"\s*/\* 0x([0-9a-f]{16}) \*/", line):
            words.append(int(found.group(1), 16))
    instructions = []
    for content, word in zip(texts, words, strict=True):
        control = word >> 41
        instructions.append(Instruction(content, control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63))
    return Kernel(instructions, _loops(instructions, labels))


def _loops(instructions: list[Instruction], labels: dict[str, int]) -> list[Loop]:
    found = set()
    for i, instruction in enumerate(instructions):
        target = re.search(r"`\((\.L_\S+?)\)", instruction.text)
        if instruction.opcode.startswith("BRA") and target and labels.get(target.group(1), i) < i:
            found.add(Loop(labels[target.group(1)], i))
    return sorted(found)
