"""Attention scores where torch's own attention does not reach: capped ones, and a learned bias by distance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transmamba._typing import check_sizes
from transmamba.ops.orders import Grid


def grid_of(sides: Sequence[int]) -> Grid:
    """Return rows and columns as a grid.

    Raises:
        ValueError: there are not two sides.
    """
    if len(sides) != 2:
        raise ValueError(f"a grid of rows and columns has two sides, got {len(sides)}")
    check_sizes(rows=sides[0], columns=sides[1])
    return tuple(sides)


def distances(grid: Grid) -> int:
    """Count the distances between two cells of a grid, and three more for those to, from and of the class token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def relative_index(grid: Grid, tokens: int, device: torch.device) -> Tensor:
    """Return the row of BEiT's table for every query and key, (token, token): a class token and the cells of the grid.

    Raises:
        ValueError: the tokens are not those.
    """
    rows, columns = grid
    if tokens != 1 + rows * columns:
        raise ValueError(
            f"the bias by distance is for a class token and a grid of {grid}, {1 + rows * columns} tokens; got {tokens}"
        )
    cell = torch.arange(rows * columns, device=device)
    row, column = cell // columns, cell % columns
    down = row[:, None] - row + rows - 1
    right = column[:, None] - column + columns - 1
    index = torch.full((tokens, tokens), distances(grid) - 2, device=device)  # from a cell to the class token
    index[1:, 1:] = down * (2 * columns - 1) + right
    index[0] = distances(grid) - 3
    index[0, 0] = distances(grid) - 1
    return index


def capped_attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, *, scale: float, softcap: float
) -> Tensor:
    """Attend with scores softcap tanh(scale q k / softcap); `allowed` is boolean, or added to them.

    Keys and values (batch, head, key, channel) may have fewer heads than the queries.
    """
    shared = q.unflatten(1, (k.shape[1], -1))
    scores = shared @ k[:, :, None].transpose(-1, -2) * scale
    scores = softcap * torch.tanh(scores / softcap)
    if allowed is not None:
        allowed = allowed[:, None] if allowed.shape[1] == 1 else allowed.unflatten(1, (k.shape[1], -1))
        scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    return (weights @ v[:, :, None]).flatten(1, 2)
