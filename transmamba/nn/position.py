"""Position tables of another size, and the positions of tokens in texts."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transmamba._typing import LARGEST, check_sizes, typed
from transmamba.ops.orders import Grid
from transmamba.ops.resize import interpolate_grid


@typed
def resize_position(
    table: Float[Tensor, "1 position dim"],
    grid: Grid,
    new_grid: Grid,
    *,
    antialias: bool = False,
    mode: Literal["bicubic", "bilinear"] = "bicubic",
) -> Float[Tensor, "1 new_position dim"]:
    """Resize a position table over rows and columns, or linearly over a length.

    Cells are compared by their centres (`align_corners=False`).

    Args:
        table: one row per cell of `grid`, no class token.
        grid: rows and columns, or a length.
        new_grid: as many sides.
        antialias: average over all cells that a new one covers when rows and columns shrink. Official checkpoints are
            resized without, inherited tables with.
        mode: interpolation over rows and columns.

    Raises:
        ValueError: the table does not have one row per cell of `grid`, or the grids are not of 1 or 2 positive sides.

    Example:
        >>> resize_position(torch.ones(1, 6, 5), (2, 3), (4, 3)).shape
        torch.Size([1, 12, 5])
    """
    check_sizes(width=table.shape[2])
    cells = math.prod(grid)
    if table.shape[1] != cells:
        raise ValueError(f"the position table has {table.shape[1]} rows, a grid of {grid} has {cells} cells")
    if (
        len(grid) != len(new_grid)
        or len(grid) not in (1, 2)
        or min(*grid, *new_grid) < 1
        or math.prod(new_grid) > LARGEST
    ):
        raise ValueError(f"cannot resize a grid of {grid} to {new_grid}: expected a length, or rows and columns")
    if grid == new_grid:
        return table
    linear = len(grid) == 1 or mode == "bilinear"
    return interpolate_grid(table, grid, new_grid, "linear" if linear else "bicubic", antialias=antialias)


def check_grid(x: Tensor, grid: Grid) -> None:
    """Raise ValueError unless the tokens (axis 1) fill a grid of rows and columns."""
    if len(grid) != 2 or grid[0] * grid[1] != x.shape[1] or grid[0] < 0:
        raise ValueError(f"x has {x.shape[1]} tokens, which are not those of a grid of {grid}")


def number_tokens(
    x: Float[Tensor, "batch token dim"], mask: Tensor | None, seq_idx: Tensor | None
) -> tuple[Int[Tensor, "#batch token"], Int[Tensor, "batch token"] | None]:
    """Count the real tokens before each one in its text, and number the texts of each row.

    Positions are -1 for padding. A text ends where `seq_idx` changes; there are no numbers of texts without `seq_idx`.
    """
    if mask is None and seq_idx is None:
        return torch.arange(x.shape[1], device=x.device)[None], None
    real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    positions, texts = real.cumsum(1) - real.long(), None
    if seq_idx is not None:
        begins = torch.cat([torch.zeros_like(real[:, :1]), seq_idx[:, 1:] != seq_idx[:, :-1]], 1)
        texts = begins.cumsum(1)
        positions = positions - torch.where(begins, positions, 0).cummax(1).values
    return positions.masked_fill(~real, -1), texts


def take_positions(table: Tensor, positions: Tensor, seen: Tensor | None = None) -> Tensor:
    """Take rows of a table (1, row, dim) at these positions, padding at the first one, after `seen` tokens (batch,).

    Raises:
        ValueError: a position has no row.
    """
    positions = positions.clamp_min(0) if seen is None else positions.clamp_min(0) + seen[:, None]
    rows = table.shape[1]
    # so many tokens cannot exceed the table: positions are not looked at, for which a GPU would have to wait
    short = seen is None and positions.shape[1] <= rows
    if not short and not torch.compiler.is_compiling() and positions.numel() and int(positions.max()) >= rows:
        raise ValueError(f"built for at most {rows} tokens, got {int(positions.max()) + 1}")
    return table[0][positions]
