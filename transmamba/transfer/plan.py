"""Plans: which teacher tensors feed which student tensor, on which axes, as name patterns.

A plan is a dictionary: student name pattern -> (teacher name patterns, axes). For the axes see `axes.parse_axes` and
`resize`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from transmamba._layer_maps import LayerMap, resolve_layer_map
from transmamba._typing import typed
from transmamba.transfer.axes import Axis, parse_axes, substitute

# student name pattern -> (teacher name patterns, axes)
Plan = Mapping[str, tuple[str, str]]
Entries = dict[str, tuple[str, str]]


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
    """The tensors matched by a plan, and those left over.

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
    layer. `a + b` is both tensors, one after the other on the first axis.

    Raises:
        ValueError: the axes do not fit the number of teacher tensors, or the layer map fits no such depths.
    """
    names = set(teacher)
    found = _student_layers(plan, student)
    student_depth = 1 + max((numbers["i"] for _, _, numbers in found if "i" in numbers), default=-1)
    depth = count_layers(plan, names)
    layers = resolve_layer_map(layer_map, student_depth, depth) if student_depth and depth else {}
    copies: list[Copy] = []
    beyond: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name, key, numbers in found:
        pattern, axes = plan[key]
        if "i" in numbers and numbers["i"] not in layers:
            beyond[name] = f"the layer map gives student layer {numbers['i']} no teacher layer"
            continue
        filled = _fill(numbers, layers)
        sources = [_format(part.strip(), filled) for part in pattern.split(" + ")]
        missing = [source for source in sources if source not in names]
        if missing:
            absent[name] = f"the teacher has no {' and no '.join(missing)}"
            continue
        copies += _copies(name, sources, parse_axes(_format(axes, filled)))
    used = {key for _, key, _ in found}
    return Matches(copies, beyond, absent, [key for key in plan if key not in used], layers)


def count_layers(plan: Plan, teacher: Iterable[str]) -> int:
    """Count the layers of the teacher that the plan's patterns find."""
    patterns = {part.strip() for pattern, _ in plan.values() for part in pattern.split(" + ") if "{i}" in part}
    hits = (re.fullmatch(regex, name) for regex in map(_regex, patterns) for name in teacher)
    return 1 + max((int(hit["i"]) for hit in hits if hit), default=-1)


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
    """Compile `blocks.{i}.norm` as a regular expression in which every placeholder is one number."""
    seen: set[str] = set()
    pieces = []
    for piece in re.split(r"(\{[a-z]+(?:-1)?\})", pattern):
        if not piece.startswith("{"):
            pieces.append(re.escape(piece))
        elif piece[1:-1].isalpha():
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


def affine(student: str, teacher: str, axes: str) -> Entries:
    """Return the entries of a weight and a bias; the bias lies on the weight's first axis.

    Example:
        >>> affine("head", "head", "class residual")["head.bias"]
        ('head.bias', 'class')
    """

    def leaf(name: str) -> str:
        return " + ".join(f"{part}.{name}" for part in teacher.split(" + "))

    return {f"{student}.weight": (leaf("weight"), axes), f"{student}.bias": (leaf("bias"), axes.split()[0])}


@typed
def bind(plan: Plan, **sizes: int) -> Entries:
    """Replace axis names by numbers, where shapes alone do not determine the sizes.

    Example:
        >>> bind({"attn.proj.weight": ("attn.proj.weight", "residual head*head_dim")}, head_dim=64)
        {'attn.proj.weight': ('attn.proj.weight', 'residual head*64')}
    """
    return {name: (pattern, substitute(axes, sizes)) for name, (pattern, axes) in plan.items()}
