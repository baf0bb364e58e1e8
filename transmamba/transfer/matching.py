"""From name patterns to pairs of tensors: which teacher tensors feed which student tensor."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from transmamba.transfer.axes import Axis, parse_axes
from transmamba.transfer.layer_maps import LayerMap, resolve_layer_map

# student name pattern -> (teacher name patterns, axes)
Plan = Mapping[str, tuple[str, str]]


class AmbiguousName(ValueError):
    """A name of the plan stands for several tensors of the teacher."""


class Copy(NamedTuple):
    """A teacher tensor that goes to a student tensor, or to one block of its first axis."""

    student: str
    teacher: str
    axes: tuple[Axis, ...]
    term: int | None = None

    @property
    def teacher_axes(self) -> tuple[Axis, ...]:
        """The axes of the teacher's tensor."""
        if self.term is None:
            return self.axes
        factors = self.axes[0].terms[self.term]
        return (Axis("*".join(factors), (factors,)), *self.axes[1:])


class Matches(NamedTuple):
    """What a plan finds.

    Attributes:
        copies: pairs of tensors.
        beyond: student tensors of layers that the layer map leaves out, with the reason.
        absent: student tensors whose source the teacher lacks, with the reason.
        unused: keys of the plan that name no student tensor.
        layers: student layer -> teacher layer.
    """

    copies: list[Copy]
    beyond: dict[str, str]
    absent: dict[str, str]
    unused: list[str]
    layers: dict[int, int]


def match(plan: Plan, student: Iterable[str], teacher: Iterable[str], layer_map: LayerMap = "early") -> Matches:
    """Resolve a plan.

    In a plan's key, `{i}` is the number of a student layer and any other `{name}` another number. In the teacher's
    patterns `{i}` is the layer that the layer map gives, `{i-1}` the one before it, `{last}` that of the last student
    layer. `a | b` is the first that exists, `a + b` both, one after the other on the first axis.

    Raises:
        ValueError: the axes do not fit the number of teacher tensors, or the layer map fits no such depths.
    """
    names = _Names(teacher, [pattern for pattern, _ in plan.values()])
    found = _student_layers(plan, student)
    student_depth = 1 + max((numbers["i"] for _, _, numbers in found if "i" in numbers), default=-1)
    layers = resolve_layer_map(layer_map, student_depth, names.depth) if student_depth and names.depth else {}
    copies: list[Copy] = []
    beyond: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name, key, numbers in found:
        pattern, axes = plan[key]
        if "i" in numbers and numbers["i"] not in layers:
            beyond[name] = f"the layer map gives student layer {numbers['i']} no teacher layer"
            continue
        filled = _fill(numbers, layers)
        sources = names.find(pattern, filled)
        if sources is None:
            absent[name] = f"the teacher has no {_format(pattern, filled)}"
            continue
        copies += _copies(name, sources, parse_axes(_format(axes, filled)))
    used = {key for _, key, _ in found}
    return Matches(copies, beyond, absent, [key for key in plan if key not in used], layers)


def count_layers(plan: Plan, teacher: Iterable[str]) -> int:
    """How many layers of the teacher the plan's patterns find."""
    return _Names(teacher, [pattern for pattern, _ in plan.values()]).depth


class _Names:
    """The teacher's names, found with or without the prefix that a wrapping model puts before them."""

    def __init__(self, names: Iterable[str], patterns: Iterable[str]) -> None:
        self.names = set(names)
        prefixes, layers = {""}, {-1}
        for pattern in {part.strip() for expression in patterns for part in re.split(r"[|+]", expression)}:
            if "{i}" not in pattern and not re.search(r"\.\d+\.", pattern):
                continue
            compiled = re.compile(r"(?P<prefix>(?:\w+\.)*?)" + _regex(pattern))
            for hit in filter(None, map(compiled.fullmatch, self.names)):
                layers.add(int(hit.groupdict().get("i", -1)))
                parts = hit["prefix"].split(".")[:-1]
                prefixes |= {".".join((*parts[:count], "")) for count in range(1, len(parts) + 1)}
        self.depth = 1 + max(layers)
        self.prefixes = sorted(prefixes, key=len)

    def find(self, expression: str, numbers: Mapping[str, int]) -> list[str] | None:
        for alternative in expression.split("|"):
            found = [self._find_one(_format(part.strip(), numbers)) for part in alternative.split("+")]
            if all(found):
                return [name for name in found if name]
        return None

    def _find_one(self, name: str) -> str | None:
        if name in self.names:
            return name
        hits = [prefix + name for prefix in self.prefixes if prefix + name in self.names]
        if len(hits) > 1:
            raise AmbiguousName(f"{name} could be {' or '.join(hits)}: write the whole name in the plan")
        return hits[0] if hits else None


def _student_layers(plan: Plan, student: Iterable[str]) -> list[tuple[str, str, dict[str, int]]]:
    compiled = [(key, re.compile(_regex(key))) for key in plan]
    found = []
    for name in student:
        for key, pattern in compiled:
            hit = pattern.fullmatch(name)
            if hit:
                found.append((name, key, {group: int(number) for group, number in hit.groupdict().items()}))
                break
    return found


def _regex(pattern: str) -> str:
    """`blocks.{i}.norm` as a regular expression in which every placeholder is one number."""
    seen: set[str] = set()
    pieces = []
    for piece in re.split(r"(\{[a-z]+(?:-1)?\})", pattern):
        if not piece.startswith("{"):
            pieces.append(re.escape(piece))
        elif piece.isascii() and piece[1:-1].isalpha():
            pieces.append(f"(?P={piece[1:-1]})" if piece in seen else rf"(?P<{piece[1:-1]}>\d+)")
            seen.add(piece)
        else:
            pieces.append(r"\d+")
    return "".join(pieces)


def _fill(numbers: Mapping[str, int], layers: Mapping[int, int]) -> dict[str, int]:
    filled = dict(numbers)
    if layers:
        filled["last"] = layers[max(layers)]
    if "i" in numbers:
        filled["i"] = layers[numbers["i"]]
        filled["i-1"] = filled["i"] - 1
    return filled


def _format(pattern: str, numbers: Mapping[str, int]) -> str:
    return re.sub(r"\{([^}]+)\}", lambda hit: str(numbers.get(hit[1], hit[0])), pattern)


def _copies(student: str, sources: list[str], axes: tuple[Axis, ...]) -> list[Copy]:
    if len(sources) == 1:
        return [Copy(student, sources[0], axes)]
    if len(sources) != len(axes[0].terms):
        raise ValueError(
            f"plan for {student}: {len(sources)} teacher tensors ({', '.join(sources)}) on axis {axes[0].word!r} of"
            f" {len(axes[0].terms)} blocks; write one block per tensor, as in 'hidden+hidden'"
        )
    return [Copy(student, source, axes, term) for term, source in enumerate(sources)]
