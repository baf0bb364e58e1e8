"""Choice of the neurons to keep: one index set per axis name, shared by every tensor that has the axis."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from transmamba.transfer.axes import Axis, Equation, factor_sizes, solve
from transmamba.transfer.plan import Copy
from transmamba.transfer.source import Importance, Source

BLOCK = 2**20  # scores summed at a time


class AxisSizes(NamedTuple):
    """The size of every neuron set on both sides, and the teacher's neurons that stay."""

    teacher: dict[str, int]
    student: dict[str, int]
    kept: dict[str, Tensor]


def align(shape: tuple[int, ...], axes: tuple[Axis, ...], tensor: str) -> tuple[int, ...]:
    """Return a shape with one entry per axis word; axes of the words `1` and `time` may be missing in the tensor.

    Raises:
        ValueError: the number of axes is another.
    """
    absent = [axis.word in ("1", "time") for axis in axes]
    if len(shape) == len(axes):
        return shape
    if len(shape) != absent.count(False):
        words = " ".join(axis.word for axis in axes)
        raise ValueError(f"{tensor} has shape {shape}, but axes {words!r} in the plan")
    rest = iter(shape)
    return tuple(1 if gone else next(rest) for gone in absent)


def teacher_shape(copy: Copy, teacher: Source) -> tuple[int, ...]:
    """Return the aligned shape of a copy's source."""
    return align(teacher.shape(copy.teacher), copy.teacher_axes, f"teacher tensor {teacher.label(copy.teacher)}")


def student_shape(copy: Copy, student: Tensor) -> tuple[int, ...]:
    """Return the aligned shape of a copy's target."""
    return align(tuple(student.shape), copy.axes, f"student tensor {copy.student}")


def measure_axes(copies: Iterable[Copy], teacher: Source, student: Mapping[str, Tensor]) -> AxisSizes:
    """Return the size of every axis on both sides; no neuron is kept yet.

    Raises:
        ValueError: shapes and axes do not fit, or axes of one name differ in size.
    """
    ours, theirs = [], []
    for copy in copies:
        shape = student_shape(copy, student[copy.student])
        ours += [Equation(axis, size, copy.student) for axis, size in zip(copy.axes, shape, strict=True)]
        shape = teacher_shape(copy, teacher)
        theirs += [
            Equation(axis, size, teacher.label(copy.teacher))
            for axis, size in zip(copy.teacher_axes, shape, strict=True)
        ]
    return AxisSizes(solve(theirs, "teacher"), solve(ours, "student"), {})


def keep_neurons(
    sizes: AxisSizes,
    copies: list[Copy],
    teacher: Source,
    importance: Importance,
    *,
    grow: bool,
) -> AxisSizes:
    """Keep the neurons with the highest scores, in their old order.

    Raises:
        ValueError: the student is wider and `grow` is False, a score is unknown, missing, misshapen or not finite.
    """
    if isinstance(importance, Mapping):
        _refuse_unknown(importance, teacher, sizes)
    kept: dict[str, Tensor] = {}
    narrower: dict[str, int] = {}
    for name, size in sizes.teacher.items():
        wanted = sizes.student.get(name, size)
        if wanted > size and not grow:
            raise ValueError(
                f"the student is wider than the teacher on axis {name!r}, {wanted} against {size}: choose a narrower"
                " student, or grow=True to leave the new neurons at their initialisation"
            )
        kept[name] = torch.arange(size)
        if wanted < size:
            narrower[name] = wanted
    scores = axis_scores(narrower, sizes, copies, teacher, importance) if narrower else {}
    for name, wanted in narrower.items():
        order = torch.argsort(scores[name], descending=True, stable=True)
        kept[name] = order[:wanted].sort().values
    return sizes._replace(kept=kept)


def axis_scores(
    names: Iterable[str],
    sizes: AxisSizes,
    copies: list[Copy],
    teacher: Source,
    importance: Importance,
) -> dict[str, Tensor]:
    """Score every neuron by the mean over all scored weights attached to it, in every tensor.

    Raises:
        ValueError: no score reaches an axis, or a score is misshapen or not finite.
    """
    open_names = set(names)
    scores = {}
    if isinstance(importance, Mapping):
        scores = {name: _given(name, importance[name], sizes.teacher[name]) for name in open_names & set(importance)}
        open_names -= set(scores)
    totals = {name: torch.zeros(sizes.teacher[name], dtype=torch.float64) for name in open_names}
    counts = dict.fromkeys(open_names, 0)
    for copy in {(copy.teacher, copy.teacher_axes): copy for copy in copies}.values():
        touched = open_names & {name for axis in copy.teacher_axes for name in axis.names}
        score = _element_scores(copy, teacher, importance) if touched else None
        if score is None:
            continue
        shape = teacher_shape(copy, teacher)
        for dim, axis in enumerate(copy.teacher_axes):
            for name in open_names.intersection(axis.names):
                total, count = _reduce(score, dim, axis, shape[dim], name, sizes.teacher)
                totals[name] += total
                counts[name] += count
    empty = sorted(name for name, count in counts.items() if not count)
    if empty:
        raise ValueError(
            f"no importance for the axis {', '.join(map(repr, empty))}: score a teacher tensor that has it, or give"
            " the axis itself, {axis name: one score per neuron}"
        )
    return scores | {name: totals[name] / counts[name] for name in open_names}


def _element_scores(copy: Copy, teacher: Source, importance: Importance) -> Tensor | None:
    score, shape, label = (
        teacher.score(copy.teacher, importance),
        teacher.shape(copy.teacher),
        teacher.label(copy.teacher),
    )
    if score is None:
        return None
    fits = score.dim() == len(shape) and all(a in (1, b) for a, b in zip(score.shape, shape, strict=True))
    if not fits:
        raise ValueError(
            f"importance of {label} has shape {tuple(score.shape)}, the tensor {shape}: expected one score per"
            " weight, or 1 on the axes along which the score is constant"
        )
    if score.is_complex():
        raise TypeError(f"importance of {label} is complex, and neurons are ranked: give its absolute value")
    _refuse_non_finite(label, score)
    return score.detach().cpu().reshape(align(tuple(score.shape), copy.teacher_axes, label))


def _reduce(
    score: Tensor, dim: int, axis: Axis, total: int, name: str, sizes: Mapping[str, int]
) -> tuple[Tensor | float, int]:
    """Sum and count of the scores attached to each neuron of `name`, along one dimension of one tensor."""
    factors = factor_sizes(axis, total, sizes)
    if factors is None or score.shape[dim] != total:  # a score that is constant along the axis ranks nothing
        return 0.0, 0
    per_row, width = _sum_over_others(score, dim), score.numel() // total
    summed, count = torch.zeros(sizes[name], dtype=torch.float64), 0
    lengths = [math.prod(block) for block in factors]
    for term, block, piece in zip(axis.terms, factors, per_row.split(lengths), strict=True):
        if name in term:
            place = term.index(name)
            by_factor = piece.reshape(block).movedim(place, 0).reshape(block[place], -1)
            summed, count = summed + by_factor.sum(1), count + width * by_factor.shape[1]
    return summed, count


def _sum_over_others(score: Tensor, dim: int) -> Tensor:
    """Sum over all axes but one in float64, with only some rows in memory at a time."""
    others = [other for other in range(score.dim()) if other != dim]
    if not others:
        return score.double()
    blocks = score.split(max(1, BLOCK // max(1, score.numel() // len(score))))
    sums = [block.double().sum(others) for block in blocks]
    return torch.cat(sums) if dim == 0 else torch.stack(sums).sum(0)


def _given(name: str, score: Tensor, size: int) -> Tensor:
    if score.shape != (size,):
        raise ValueError(f"importance of axis {name!r} has shape {tuple(score.shape)}: expected ({size},)")
    _refuse_non_finite(name, score)
    return score.detach().cpu().double()


def _refuse_non_finite(name: str, score: Tensor) -> None:
    bad = sum(int((~torch.isfinite(rows)).sum()) for rows in score.split(1024))
    if bad:
        raise ValueError(
            f"importance of {name} has {bad} non-finite of {score.numel()} scores: expected finite numbers"
        )


def _refuse_unknown(importance: Mapping[str, Tensor], teacher: Source, sizes: AxisSizes) -> None:
    unknown = [name for name in importance if not teacher.knows(name) and name not in sizes.teacher]
    if unknown:
        known = [*map(teacher.label, list(teacher)[:2]), *list(sizes.teacher)[:2]]
        raise ValueError(
            f"importance names {', '.join(unknown[:5])} ({len(unknown)} in all), which are neither teacher tensors nor"
            f" axes of the plan: expected names such as {', '.join(known)}"
        )
