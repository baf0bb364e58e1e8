"""One checked copy: which entries of a teacher tensor go to which entries of a student tensor."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from transmamba.transfer.axes import Axis, factor_sizes, flatten
from transmamba.transfer.plan import Copy
from transmamba.transfer.resize import Resize, resize
from transmamba.transfer.select import AxisSizes, student_shape, teacher_shape
from transmamba.transfer.source import Source

BLOCK = 2**18  # numbers picked at a time


class Step(NamedTuple):
    """One dimension: the teacher's entries (None: all), the change made to them, the student's entries (None: all)."""

    source: Tensor | None
    target: Tensor | None
    resize: Resize | None = None


class Write(NamedTuple):
    """A write that has been checked; `blocks` makes its numbers only when they are needed, some rows at a time."""

    student: str
    teacher: str
    blocks: Callable[[], Iterator[Tensor]]
    shape: tuple[int, ...]
    target: tuple[Tensor | None, ...]
    exact: bool
    numbers: int
    change: str

    @property
    def whole(self) -> bool:
        """Whether every entry of the student's tensor is written."""
        return all(index is None for index in self.target)

    def apply(self, tensor: Tensor) -> None:
        """Write into the student's tensor in its own dtype, on its own device."""
        tensor, start = tensor.view(self.shape), 0
        place = _ranges(self.target, self.shape, tensor.device)
        for block in self.blocks():
            end = start + len(block)
            if self.whole:
                tensor[start:end].copy_(block)
            else:
                tensor.index_put_(_grid([place[0][start:end], *place[1:]]), block.to(tensor.device, tensor.dtype))
            start = end


def plan_write(copy: Copy, axis_sizes: AxisSizes, teacher: Source, student: Tensor, rescale: str | None) -> Write | str:
    """Plan the write of one copy, or return the reason to skip its tensor.

    Raises:
        ValueError: the shapes cannot be brought together.
    """
    if not copy.axes:
        raise ValueError(f"plan for {copy.student}: no axes; exclude scalars, there is nothing to choose in them")
    shape, wanted = teacher_shape(copy, teacher), student_shape(copy, student)
    label, note = teacher.label(copy.teacher), teacher.note(copy.teacher)
    steps: list[Step] = []
    for dim, axis in enumerate(copy.axes):
        names = (f"teacher tensor {label}", f"student tensor {copy.student}")
        step = _step(copy, dim, axis, (shape[dim], wanted[dim]), axis_sizes, names)
        if isinstance(step, str):
            return step
        steps.append(step)
    factor = _factor(copy, shape, wanted) if rescale == "sqrt" else 1.0
    exact = not note and factor == 1.0 and all(step.source is None and step.resize is None for step in steps)

    def blocks() -> Iterator[Tensor]:
        tensor = teacher[copy.teacher].reshape(shape)
        for block in _pick(tensor, [step.source for step in steps]):
            for dim, step in enumerate(steps):
                block = block if step.resize is None else step.resize(block, dim)
            yield block if factor == 1.0 else block * factor

    target = tuple(step.target for step in steps)
    count = math.prod(size if index is None else len(index) for index, size in zip(target, wanted, strict=True))
    changes = [f"{shape} -> {tuple(student.shape)}", note, f"times {factor:.4g}" if factor != 1.0 else ""]
    change = ", ".join(part for part in changes if part)
    return Write(copy.student, label, blocks, wanted, target, exact, count, change)


def _pick(tensor: Tensor, index: list[Tensor | None]) -> Iterator[Tensor]:
    """Yield the chosen entries of every axis, some rows at a time: a copy of all would double the student's tensor."""
    if all(entries is None for entries in index):
        yield tensor
        return
    everything = _ranges(index, tensor.shape, tensor.device)
    width = math.prod(len(entries) for entries in everything[1:])
    for rows in everything[0].split(max(1, BLOCK // max(1, width))):
        yield tensor[_grid([rows, *everything[1:]])]


def _ranges(index: Sequence[Tensor | None], shape: Sequence[int], device: torch.device) -> list[Tensor]:
    return [
        torch.arange(size, device=device) if entries is None else entries.to(device)
        for entries, size in zip(index, shape, strict=True)
    ]


def _grid(index: list[Tensor]) -> tuple[Tensor, ...]:
    """Make one index per axis, shaped so that together they address a block."""
    dims = range(len(index))
    return tuple(entries.view([-1 if dim == axis else 1 for dim in dims]) for axis, entries in enumerate(index))


def _step(
    copy: Copy, dim: int, axis: Axis, sizes: tuple[int, int], axis_sizes: AxisSizes, names: tuple[str, str]
) -> Step | str:
    teacher, student = sizes
    if axis.resized:
        how = resize(axis, teacher, student, names)
        if isinstance(how, str):
            return how
        whole = teacher == student and torch.equal(how.rows, torch.arange(teacher)) and how.grids is None
        full = torch.equal(how.target, torch.arange(student))
        return Step(None, None) if whole and full else Step(None, None if full else how.target, how)
    their_axis = copy.teacher_axes[dim]
    theirs = factor_sizes(their_axis, teacher, axis_sizes.teacher)
    ours = factor_sizes(axis, student, axis_sizes.student)
    if theirs is None or ours is None:
        blocks = len(axis.terms) if copy.term is not None and dim == 0 else 1
        if student == teacher * blocks and (blocks == 1 or len(set(axis.terms)) == 1):
            return Step(None, None if blocks == 1 else torch.arange(teacher) + (copy.term or 0) * teacher)
        raise ValueError(
            f"{names[1]} has {student} entries on axis {axis.word!r}, {names[0]} {teacher}, and the shapes do not show"
            " how they factor: say so in the plan, for heads bind(plan, head_dim=64)"
        )
    first = copy.term if copy.term is not None and dim == 0 else 0
    sources, targets, offset = [], [], 0
    start = sum(math.prod(block) for block in ours[:first])
    for term, block, ours_block in zip(their_axis.terms, theirs, ours[first:], strict=copy.term is None or dim > 0):
        pairs = [_factor_index(*factor, axis_sizes, names) for factor in zip(term, block, ours_block, strict=True)]
        sources.append(flatten([source for source, _ in pairs], block, offset))
        targets.append(flatten([target for _, target in pairs], ours_block, start))
        offset, start = offset + math.prod(block), start + math.prod(ours_block)
    source, target = torch.cat(sources), torch.cat(targets)
    return Step(
        None if torch.equal(source, torch.arange(teacher)) else source,
        None if torch.equal(target, torch.arange(student)) else target,
    )


def _factor_index(
    factor: str, teacher: int, student: int, axis_sizes: AxisSizes, names: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    if factor in axis_sizes.kept:
        kept = axis_sizes.kept[factor]
        return kept, torch.arange(len(kept))
    if teacher != student:
        raise ValueError(
            f"{names[1]} has {student} entries on an axis {factor!r}, {names[0]} has {teacher}: expected the same"
            " number; name the axis in the plan if neurons may be left out there, or exclude the tensor"
        )
    return torch.arange(teacher), torch.arange(teacher)


def _factor(copy: Copy, teacher: tuple[int, ...], student: tuple[int, ...]) -> float:
    """Keep the spread of a sum of inputs when some of them go: only matrices have an input axis, tables have none."""
    matrix = len(teacher) > 1 and copy.student.endswith("weight") and copy.axes[0].resized not in ("vocab", "sequence")
    narrower = matrix and copy.axes[1].names and teacher[1] > student[1]
    return math.sqrt(teacher[1] / student[1]) if narrower else 1.0
