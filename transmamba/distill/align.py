"""Bring student and teacher tokens into correspondence: special tokens, grids, frames.

A position in the token axis must mean the same place on both sides before any loss compares them.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from transmamba._typing import LARGEST, typed
from transmamba.distill.checks import Layers, check_tensors
from transmamba.ops.resize import LINEAR, interpolate_grid, leave_out

Position = Literal["front", "back", "middle", "both"]
Interpolation = Literal["bilinear", "bicubic", "area", "nearest"]


@typed
def drop_tokens(
    x: Float[Tensor, "batch token dim"], special: int | Sequence[int], position: Position = "front"
) -> Float[Tensor, "batch kept dim"]:
    """Remove class, distillation or register tokens.

    Args:
        x: tokens, special ones included.
        special: how many there are, or their indices when they are scattered.
        position: where that many stand: at the "front" (ViT, DeiT), at the "back", in the "middle" (Vim), or half of
            them at "both" ends (Vim with two class tokens).

    Raises:
        ValueError: there are not that many tokens, an index is out of range, or an odd number stands at both ends.

    Example:
        >>> import torch
        >>> drop_tokens(torch.arange(5.0).view(1, 5, 1), 1, "middle").flatten()
        tensor([0., 1., 3., 4.])
    """
    return leave_out(x, _special_tokens(x.shape[1], special, position))


def _special_tokens(tokens: int, special: int | Sequence[int], position: Position) -> list[int]:
    """List the special tokens in ascending order."""
    if isinstance(special, int) and not 0 <= special < tokens:
        raise ValueError(f"cannot drop {special} of {tokens} tokens")
    if not isinstance(special, int):
        for index in special:
            if not -tokens <= index < tokens:
                raise ValueError(f"special token {index} is out of range: there are {tokens} tokens")
        gone = sorted({index % tokens for index in special})
    elif position == "both":
        if special % 2:
            raise ValueError(f"{special} special tokens cannot stand at both ends in equal numbers: list their indices")
        gone = [*range(special // 2), *range(tokens - special // 2, tokens)]
    else:
        first = {"front": 0, "middle": (tokens - special) // 2, "back": tokens - special}[position]
        gone = list(range(first, first + special))
    if len(gone) == tokens:
        raise ValueError(f"cannot drop {len(gone)} of {tokens} tokens")
    return gone


@typed
def flatten_map(
    x: Float[Tensor, "batch *map"], layout: Literal["channels_first", "channels_last"] = "channels_first"
) -> Float[Tensor, "batch token dim"]:
    """Flatten a feature map [B, D, H, W] or [B, H, W, D] (any number of grid axes) to tokens in raster order.

    Raises:
        ValueError: there is no grid axis.

    Example:
        >>> import torch
        >>> flatten_map(torch.zeros(2, 3, 5, 7)).shape
        torch.Size([2, 35, 3])
    """
    if x.dim() < 3:
        raise ValueError(f"map has shape {tuple(x.shape)}: expected a batch, a channel and at least one grid axis")
    if layout == "channels_first":
        return x.flatten(2).transpose(1, 2)
    return x.flatten(1, -2)


@typed
def resize_tokens(
    x: Float[Tensor, "batch token dim"],
    grid: Sequence[int],
    target: Sequence[int],
    interpolation: Interpolation = "bilinear",
) -> Float[Tensor, "batch token2 dim"]:
    """Interpolate tokens on `grid` to the grid `target`: (length,), (rows, columns) or (frames, rows, columns).

    Args:
        x: the tokens of the grid in raster order, no others.
        grid: their grid.
        target: the grid wanted, of as many axes.
        interpolation: "bilinear" (linear along every axis; antialiased when a 2-D grid shrinks), "bicubic" (2-D only),
            "area" (mean of the covered cells) or "nearest".

    Raises:
        ValueError: the grid does not hold the tokens, the axes differ in number, or the interpolation does not suit.

    Example:
        >>> import torch
        >>> resize_tokens(torch.arange(4.0).view(1, 4, 1), (2, 2), (1, 1), "area").item()
        1.5
    """
    grid, target = tuple(grid), tuple(target)
    if math.prod(grid) != x.shape[1]:
        raise ValueError(
            f"grid {grid} holds {math.prod(grid)} tokens, there are {x.shape[1]}: drop special tokens first"
        )
    if len(grid) != len(target) or len(grid) not in LINEAR:
        raise ValueError(f"cannot resize grid {grid} to {target}: expected 1 to 3 axes, as many on both sides")
    if interpolation == "bicubic" and len(grid) != 2:
        raise ValueError(f"bicubic interpolation needs a 2-D grid, got {grid}: use bilinear")
    if min(*grid, *target, x.shape[2]) < 1 or math.prod(target) > LARGEST:
        raise ValueError(f"cannot resize grid {grid} to {target} in {x.shape[2]} channels: expected positive sizes")
    if grid == target:
        return x
    shrinks = len(grid) == 2 and math.prod(target) < math.prod(grid)
    mode: Literal["linear", "bicubic", "area", "nearest"] = "linear" if interpolation == "bilinear" else interpolation
    return interpolate_grid(x, grid, target, mode, antialias=shrinks)


@typed
def align_tokens(
    student: Float[Tensor, "batch token dim"],
    teacher: Float[Tensor, "batch2 token2 dim2"],
    *,
    student_prefix: int | Sequence[int] = 0,
    teacher_prefix: int | Sequence[int] = 0,
    prefix_position: Position | tuple[Position, Position] = "front",
    student_grid: Sequence[int] | None = None,
    teacher_grid: Sequence[int] | None = None,
    resize: Literal["student", "teacher", "none"] = "student",
    interpolation: Interpolation = "bilinear",
) -> tuple[Float[Tensor, "batch kept dim"], Float[Tensor, "batch kept dim2"]]:
    """Bring student and teacher to the same tokens in the same places.

    Special tokens go, then frames are joined, then one side is resized to the other's grid. A teacher that saw the
    frames of a video as a batch, [(batch frame) token dim], is joined to [batch (frame token) dim] when its grid is
    (frames, rows, columns); so is such a student.

    Args:
        student: one layer.
        teacher: the teacher feature.
        student_prefix: number or indices of the student's class, distillation and register tokens.
        teacher_prefix: the teacher's.
        prefix_position: where they stand (see `drop_tokens`), for both or as a pair (student, teacher).
        student_grid: (length,), (rows, columns) or (frames, rows, columns) of the other tokens.
        teacher_grid: the teacher's.
        resize: which side is interpolated to the grid of the other; "none" requires equal grids.
        interpolation: see `resize_tokens`.

    Raises:
        ValueError: the sides cannot be brought to the same tokens as given; the message names the missing fact.

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(2, 49, 3), torch.randn(2, 1 + 196, 5)
        >>> s, t = align_tokens(student, teacher, teacher_prefix=1, student_grid=(7, 7), teacher_grid=(14, 14))
        >>> s.shape, t.shape
        (torch.Size([2, 196, 3]), torch.Size([2, 196, 5]))
    """
    positions = (prefix_position, prefix_position) if isinstance(prefix_position, str) else prefix_position
    student = _join_frames(drop_tokens(student, student_prefix, positions[0]), student_grid)
    teacher = _join_frames(drop_tokens(teacher, teacher_prefix, positions[1]), teacher_grid)
    if len(student) != len(teacher):
        raise ValueError(
            f"student has batch {len(student)}, teacher {len(teacher)}: give both the same samples "
            "(frames seen as a batch need their grid, (frames, rows, columns))"
        )
    if student_grid is None or teacher_grid is None:
        if student.shape[1] != teacher.shape[1]:
            raise ValueError(
                f"student has {student.shape[1]} tokens, teacher {teacher.shape[1]}: say how many are special "
                "(student_prefix, teacher_prefix), or give both grids; padded text goes through align_text"
            )
        return student, teacher
    if resize == "student":
        student = resize_tokens(student, student_grid, teacher_grid, interpolation)
    elif resize == "teacher":
        teacher = resize_tokens(teacher, teacher_grid, student_grid, interpolation)
    elif tuple(student_grid) != tuple(teacher_grid):
        raise ValueError(f"grids {tuple(student_grid)} and {tuple(teacher_grid)} differ: choose resize='student'")
    return student, teacher


@typed
def align_layers(
    student: Layers,
    teacher: Float[Tensor, "batch2 token2 dim2"],
    student_grids: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> tuple[list[Tensor], Tensor]:
    """Align every student layer with one teacher feature, each from a grid of its own.

    Args:
        student: the layers, such as `features.layers`.
        teacher: the teacher feature.
        student_grids: the grid of each layer, such as `features.grids` of a pyramid.
        options: as for `align_tokens`; one teacher cannot be resized to several grids.

    Returns:
        The layers and the teacher.

    Raises:
        ValueError: there is no layer, or not one grid per layer; the teacher would need more than one grid; or as
            `align_tokens`.

    Example:
        >>> import torch
        >>> student, teacher = [torch.randn(2, 16, 3), torch.randn(2, 4, 5)], torch.randn(2, 1 + 16, 7)
        >>> layers, t = align_layers(student, teacher, [(4, 4), (2, 2)], teacher_prefix=1, teacher_grid=(4, 4))
        >>> [tuple(layer.shape) for layer in layers], t.shape
        ([(2, 16, 3), (2, 16, 5)], torch.Size([2, 16, 7]))
    """
    if not len(student):
        raise ValueError("student is empty: expected at least one layer")
    check_tensors(student, "student")
    if student_grids is not None and len(student_grids) != len(student):
        raise ValueError(f"student_grids has {len(student_grids)} entries for {len(student)} layers: give one for each")
    if options.get("resize") == "teacher" and len({tuple(grid) for grid in student_grids or ()}) > 1:
        raise ValueError("the grids of the layers differ, and there is one teacher for all: choose resize='student'")
    grids: Sequence[Sequence[int] | None] = student_grids or [None] * len(student)
    pairs = [
        align_tokens(layer, teacher, student_grid=grid, **options) for layer, grid in zip(student, grids, strict=True)
    ]
    return [layer for layer, _ in pairs], pairs[0][1]


def _join_frames(x: Tensor, grid: Sequence[int] | None) -> Tensor:
    if grid is None or len(grid) != 3:
        return x
    frames, per_frame = grid[0], grid[1] * grid[2]
    if x.shape[1] == per_frame and frames > 1 and len(x) % frames == 0:
        return rearrange(x, "(batch frame) token dim -> batch (frame token) dim", frame=frames)
    return x
