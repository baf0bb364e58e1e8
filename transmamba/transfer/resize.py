"""Axes that are not sets of neurons: position tables, vocabularies, frames."""

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor

from transmamba.ops.resize import inflate_frames, interpolate_grid
from transmamba.transfer.axes import PREFIX, Axis

# tables that differ by more rows than any padding rule explains belong to different tokenizers
VOCABULARY_PADDING = 256
TOKEN = re.compile(r"token(?::(?P<teacher>[\d*]|mid)>(?P<student>[\d*]|mid)(?::(?P<from>\d+x\d+)>(?P<to>\d+x\d+))?)?")


class Resize(NamedTuple):
    """Teacher rows to take, how to resize those after the class rows, and the student rows they go to."""

    rows: Tensor
    grids: tuple[tuple[int, int], tuple[int, int]] | None
    target: Tensor
    frames: int = 1

    def __call__(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the rows of the student."""
        if self.frames > 1:
            return inflate_frames(tensor, self.frames, dim)
        tensor = tensor.index_select(dim, self.rows.to(tensor.device))
        if self.grids is None:
            return tensor
        (rows, columns), target = self.grids
        prefix = tensor.shape[dim] - rows * columns
        return torch.cat([tensor.narrow(dim, 0, prefix), _bicubic(tensor, dim, prefix, (rows, columns), target)], dim)


def resize(axis: Axis, teacher: int, student: int, names: tuple[str, str]) -> Resize | str:
    """Return the resize of an axis that is resized, or the reason to skip the tensor.

    Raises:
        ValueError: the sizes cannot be brought together.
    """
    if axis.resized == "class":
        same = Resize(torch.arange(teacher), None, torch.arange(teacher))
        return same if teacher == student else f"the teacher has {teacher} classes, the student {student}"
    if axis.resized in PREFIX:
        if axis.resized != "sequence" and abs(teacher - student) >= VOCABULARY_PADDING:
            raise ValueError(
                f"{names[0]} has {teacher} vocabulary rows, {names[1]} {student}: more than padding, so the"
                f" tokenizers differ; exclude {names[1]}, or build the student for the teacher's tokenizer"
            )
        shared = torch.arange(min(teacher, student))
        return Resize(shared, None, shared)
    if axis.resized == "time":
        if teacher not in (1, student):
            raise ValueError(f"{names[0]} has {teacher} frames, {names[1]} {student}: expected 1 or the same number")
        rows = torch.arange(student)
        return Resize(rows[:teacher], None, rows, student if teacher == 1 else 1)
    return _resize_tokens(axis, teacher, student, names)


def _resize_tokens(axis: Axis, teacher: int, student: int, names: tuple[str, str]) -> Resize:
    spec = TOKEN.fullmatch(axis.word)
    if spec is None:
        raise ValueError(f"axis {axis.word!r} of {names[1]}: expected token:1>0, token:1>mid or token:1>0:6x10>12x20")
    middle = spec["student"] == "mid"
    ours, theirs = _count(spec["student"], student), _count(spec["teacher"], teacher)
    if ours is None or theirs is None:
        if teacher == student and not middle:
            return Resize(torch.arange(teacher), None, torch.arange(teacher))
        bad, size = (names[0], teacher) if theirs is None else (names[1], student)
        raise ValueError(
            f"position table {bad} of {size} rows is not a square of patches after at most two class rows: write class"
            " rows and grids in the plan, token:1>0:6x10>12x20"
        )
    shared = min(ours, theirs)
    classes, patches = _places(teacher, theirs, spec["teacher"] == "mid")
    rows = torch.cat([classes[:shared], patches])
    classes, patches = _places(student, ours, middle)
    target = torch.cat([classes[:shared], patches])
    if teacher - theirs == student - ours and not spec["from"]:
        return Resize(rows, None, target)
    return Resize(rows, _grids(spec, teacher - theirs, student - ours, names), target)


def _places(size: int, count: int, middle: bool) -> tuple[Tensor, Tensor]:
    """Return the rows of the class tokens, and those of the patches."""
    if not middle:
        return torch.arange(count), torch.arange(count, size)
    centre, patches = (size - 1) // 2, torch.arange(size - 1)
    return torch.tensor([centre]), patches + (patches >= centre)


def _count(given: str | None, size: int) -> int | None:
    """Return the number of class rows: the given one, or the remainder beside the largest square."""
    if given == "mid":
        return 1
    if given is not None and given != "*":
        return int(given)
    rest = size - math.isqrt(size) ** 2
    return rest if rest <= 2 else None


def _grids(
    spec: re.Match[str], teacher: int, student: int, names: tuple[str, str]
) -> tuple[tuple[int, int], tuple[int, int]]:
    grids = []
    for size, name, given in ((teacher, names[0], spec["from"]), (student, names[1], spec["to"])):
        side = math.isqrt(size)
        rows, columns = map(int, given.split("x")) if given else (side, side)
        if rows * columns != size:
            raise ValueError(
                f"position table {name} has {size} patch rows, not {rows} x {columns}: write the grids in the plan,"
                " token:1>0:6x10>12x20"
            )
        grids.append((rows, columns))
    return grids[0], grids[1]


def _bicubic(tensor: Tensor, dim: int, prefix: int, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    table = tensor.narrow(dim, prefix, tensor.shape[dim] - prefix).movedim(dim, 0)
    resized = interpolate_grid(table.flatten(1)[None], source, target, "bicubic", antialias=True)[0]
    return resized.reshape(-1, *table.shape[1:]).movedim(0, dim)
