"""Tokens of one grid for another: interpolation, tokens left out, and kernels of images for clips."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def interpolate_grid(
    x: Tensor,
    grid: Sequence[int],
    target: Sequence[int],
    mode: Literal["linear", "bicubic", "area", "nearest"],
    *,
    antialias: bool,
) -> Tensor:
    """Interpolate tokens (batch, token, dim) in raster order from `grid` to `target`, in float32 at least.

    Cells are compared by their centres (`align_corners=False`).

    Args:
        x: the tokens, as many as `grid` has cells.
        grid: (length,), (rows, columns) or (frames, rows, columns).
        target: as many sides.
        mode: "linear" along every axis, "bicubic" (rows and columns only), "area" or "nearest".
        antialias: average over all cells that a new one covers when a 2-D grid shrinks. A table that is inherited is
            resized so, as timm does; official implementations resize the tables of their checkpoints without.

    Example:
        >>> interpolate_grid(torch.tensor([[[0.0], [1.0]]]), (2,), (4,), "linear", antialias=False).flatten()
        tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """
    image = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(1, 2).unflatten(2, tuple(grid))
    smooth = mode in ("linear", "bicubic")
    options = {"align_corners": False, "antialias": antialias} if smooth else {}
    name = LINEAR[len(grid)] if mode == "linear" else mode
    resized = F.interpolate(image, tuple(target), mode=name, **options)
    return resized.reshape(*image.shape[:2], math.prod(target)).transpose(1, 2).to(x.dtype)


def inflate_frames(kernel: Tensor, frames: int, dim: int) -> Tensor:
    """Put an image's kernel, of size 1 on axis `dim`, in the centre frame of a clip's, with zeros in the others.

    A still clip then gives the output of its image.
    """
    zeros = torch.zeros_like(kernel)
    return torch.cat([kernel if frame == frames // 2 else zeros for frame in range(frames)], dim)


def leave_out(x: Tensor, gone: Sequence[int]) -> Tensor:
    """Return tokens (batch, token, dim) without those at the positions `gone`, in ascending order; some are left."""
    edges = [-1, *gone, x.shape[1]]
    # slices and not an index: at the ends they are views, and no index travels to the device
    pieces = [x[:, before + 1 : after] for before, after in pairwise(edges) if after > before + 1]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
