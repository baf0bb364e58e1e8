"""The plan of a distillation, layer by layer, before any training."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from transmamba._typing import typed
from transmamba.distill.align import align_tokens
from transmamba.distill.checks import Layers, check_tensors
from transmamba.distill.layer_map import TeacherLayers, match_layers


class MatchRow(NamedTuple):
    """One student layer, the teacher layer it meets, and the changes that both need."""

    student: str
    teacher: str
    width: str
    tokens: str
    fits: bool


class MatchTable(NamedTuple):
    """The rows; printed, a table."""

    rows: tuple[MatchRow, ...]

    @property
    def fits(self) -> bool:
        """Whether every layer can meet its teacher."""
        return all(row.fits for row in self.rows)

    def __str__(self) -> str:
        """Format one line per student layer."""
        lines = [("student", "teacher", "width", "tokens"), *(row[:4] for row in self.rows)]
        sizes = [max(len(line[column]) for line in lines) for column in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip() for line in lines
        )


@typed
def dry_run(
    student: Mapping[str, Tensor] | Layers,
    teacher: Mapping[str, Tensor] | Layers,
    teacher_layers: TeacherLayers | Literal["similarity"] = "last",
    *,
    align: Callable[..., tuple[Any, Tensor]] = align_tokens,
    student_grids: Sequence[Sequence[int]] | None = None,
) -> MatchTable:
    """List each student layer with the teacher layer that it meets, and the changes of widths and tokens.

    Nothing is computed: only shapes are used, except for "similarity".

    Args:
        student: features by name, as from `tap`, or a list of them.
        teacher: the teacher's.
        teacher_layers: see `match_layers`.
        align: the function that training will use, such as `functools.partial(align_tokens, teacher_prefix=1)`.
        student_grids: the grid of each student layer, such as `features.grids` of a pyramid; passed on to `align` as
            `student_grid`.

    Raises:
        ValueError: the layers cannot be matched, or there is not one grid per layer. Widths and tokens that do
            not fit are marked in the table instead.

    Example:
        >>> from functools import partial
        >>> student = {"blocks.0": torch.empty(2, 196, 192), "blocks.1": torch.empty(2, 196, 192)}
        >>> teacher = {"layer.5": torch.empty(2, 197, 384), "layer.11": torch.empty(2, 197, 384)}
        >>> print(dry_run(student, teacher, "uniform", align=partial(align_tokens, teacher_prefix=1)))
        student   teacher   width           tokens
        blocks.0  layer.5   192 -> 384 pad  196, teacher 197 -> 196
        blocks.1  layer.11  192 -> 384 pad  196, teacher 197 -> 196
    """
    students, teachers = (
        side if isinstance(side, Mapping) else {f"layer {number}": layer for number, layer in enumerate(side)}
        for side in (student, teacher)
    )
    for name, side in (("student", students), ("teacher", teachers)):
        check_tensors(list(side.values()), name)
    chosen = match_layers(list(students.values()), list(teachers.values()), teacher_layers)
    names = list(teachers)
    if student_grids is not None and len(student_grids) != len(students):
        raise ValueError(
            f"student_grids has {len(student_grids)} entries for {len(students)} layers: give one for each"
        )
    grids = [{}] * len(students) if student_grids is None else [{"student_grid": grid} for grid in student_grids]
    rows = []
    for (name, layer), index, grid in zip(students.items(), chosen, grids, strict=True):
        target = teachers[names[index]]
        tokens, fits = _tokens(layer, target, partial(align, **grid))
        rows.append(MatchRow(name, names[index], _width(layer.shape[-1], target.shape[-1]), tokens, fits))
    return MatchTable(tuple(rows))


def _width(student: int, teacher: int) -> str:
    if student == teacher:
        return f"{student}"
    return f"{student} -> {teacher} {'pad' if student < teacher else 'project'}"


def _tokens(
    student: Tensor, teacher: Tensor, align: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> tuple[str, bool]:
    try:
        after = align(*(torch.empty_like(side, device="meta") for side in (student, teacher)))
    except (ValueError, TypeError) as error:
        return f"do not fit: {error}", False
    sides = [
        f"{before.shape[1]}" if before.shape[1] == side.shape[1] else f"{before.shape[1]} -> {side.shape[1]}"
        for before, side in zip((student, teacher), after, strict=True)
    ]
    return (sides[0] if sides[0] == sides[1] else f"{sides[0]}, teacher {sides[1]}"), True
