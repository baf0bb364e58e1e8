"""The axis words of a plan, and the sizes they stand for.

One string describes a tensor, one word per axis: `"hidden.3 residual"`. A word is a sum of products of names:
`up+gate` lays two blocks one after the other, `3*head*64` is the row-major product of its factors, so that whole
heads are kept. `.` is an axis, or the rest of a product, that must have one size in teacher and student.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# words for how two sizes are matched; every other name denotes a set of neurons of which the best are kept
PREFIX = {"vocab", "logit", "sequence"}
RESIZED = PREFIX | {"token", "time", "class"}


class Axis(NamedTuple):
    """One axis: a sum of products of names."""

    word: str
    terms: tuple[tuple[str, ...], ...]

    @property
    def resized(self) -> str:
        """The word by which this axis is resized, or an empty string."""
        first = self.word.split(":")[0]
        return first if first in RESIZED else ""

    @property
    def names(self) -> list[str]:
        """The neuron sets in this axis, each once."""
        if self.resized:
            return []
        factors = dict.fromkeys(factor for term in self.terms for factor in term)
        return [factor for factor in factors if factor != "." and not factor.isdigit()]


class Equation(NamedTuple):
    """An axis, its size, and the tensor that the size was read from."""

    axis: Axis
    total: int
    tensor: str


def parse_axes(text: str) -> tuple[Axis, ...]:
    """Parse the axes of one tensor."""
    words = text.split()
    return tuple(Axis(word, tuple(tuple(term.split("*")) for term in word.split("+"))) for word in words)


def substitute(text: str, sizes: Mapping[str, int]) -> str:
    """Write every factor named in `sizes` as a number."""
    words = (
        "+".join("*".join(str(sizes.get(factor, factor)) for factor in term.split("*")) for term in word.split("+"))
        for word in text.split()
    )
    return " ".join(words)


def solve(equations: Iterable[Equation], side: str) -> dict[str, int]:
    """Solve for the size of every neuron set, as far as the shapes determine it.

    Raises:
        ValueError: two tensors disagree about a size.
    """
    sizes: dict[str, int] = {}
    said_by: dict[str, str] = {}
    # `.` is another number in every tensor, so only sums without it are equations between names
    waiting = [equation for equation in equations if equation.axis.names and "." not in _factors(equation.axis)]
    progress = True
    while progress:
        progress, later = False, []
        for equation in waiting:
            unknown = [name for name in equation.axis.names if name not in sizes]
            if not unknown:
                _check(equation, sizes, said_by, side)
            elif len(unknown) == 1:
                sizes[unknown[0]], said_by[unknown[0]] = _solve_one(equation, unknown[0], sizes, side), equation.tensor
                progress = True
            else:
                later.append(equation)
        waiting = later
    return sizes


def factor_sizes(axis: Axis, total: int, sizes: Mapping[str, int]) -> list[list[int]] | None:
    """Return the size of every factor of every term, or None where the shapes leave it open."""
    known = {**sizes, **{factor: int(factor) for factor in _factors(axis) if factor.isdigit()}}
    unknown = {factor for factor in _factors(axis) if factor not in known}
    if len(unknown) > 1:
        return None
    if unknown:
        (name,) = unknown
        constant, slope = _linear(axis, name, known)
        if slope is None or (total - constant) % slope or total <= constant:
            return None
        known[name] = (total - constant) // slope
    found = [[known[factor] for factor in term] for term in axis.terms]
    return found if sum(map(math.prod, found)) == total else None


def flatten(indices: list[Tensor], sizes: list[int], offset: int) -> Tensor:
    """Return the row-major positions of a product of index sets, moved by `offset`."""
    flat = torch.zeros(1, dtype=torch.long)
    for index, size in zip(indices, sizes, strict=True):
        flat = (flat[:, None] * size + index).flatten()
    return flat + offset


def _factors(axis: Axis) -> list[str]:
    return [factor for term in axis.terms for factor in term]


def _linear(axis: Axis, unknown: str, known: Mapping[str, int]) -> tuple[int, int | None]:
    constant, slope = 0, 0
    for term in axis.terms:
        rest = math.prod(known[factor] for factor in term if factor != unknown)
        count = term.count(unknown)
        if count > 1:
            return 0, None
        constant, slope = (constant + rest, slope) if count == 0 else (constant, slope + rest)
    return constant, slope or None


def _solve_one(equation: Equation, unknown: str, sizes: Mapping[str, int], side: str) -> int:
    known = {**sizes, **{factor: int(factor) for factor in _factors(equation.axis) if factor.isdigit()}}
    constant, slope = _linear(equation.axis, unknown, known)
    rest = equation.total - constant
    if slope is None or rest <= 0 or rest % slope:
        raise ValueError(
            f"{side} tensor {equation.tensor} has {equation.total} entries on axis {equation.axis.word!r}, which is"
            f" not a multiple of {unknown}: with {known or 'nothing else known'} each takes {slope}"
        )
    return rest // slope


def _check(equation: Equation, sizes: Mapping[str, int], said_by: Mapping[str, str], side: str) -> None:
    if factor_sizes(equation.axis, equation.total, sizes) is None:
        known = ", ".join(f"{name} = {sizes[name]} by {said_by[name]}" for name in equation.axis.names)
        raise ValueError(
            f"{side} tensor {equation.tensor} has {equation.total} entries on axis {equation.axis.word!r}, but"
            f" {known}: axes of one name must have one size"
        )
