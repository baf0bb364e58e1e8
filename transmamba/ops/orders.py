"""Scan orders: in which sequence a recurrence visits the tokens of a grid.

A grid is `(length,)`, `(rows, columns)` or `(frames, rows, columns)`; tokens are numbered in raster order, the last
axis fastest. An order is a permutation `index`: step t visits token `index[t]`; `inverse[token]` is its step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transmamba._typing import LARGEST, typed, unknown_choice

Grid = tuple[int, ...]


class ScanOrder(NamedTuple):
    """A permutation of the tokens and its inverse."""

    index: Int[Tensor, " length"]  # type: ignore[assignment]
    inverse: Int[Tensor, " length"]

    def undo(self) -> "ScanOrder":
        """Return the order that brings tokens from scan order back to natural order."""
        return ScanOrder(self.inverse, self.index)


def _raster(tokens: Tensor) -> Tensor:
    return tokens.flatten()


def _column(tokens: Tensor) -> Tensor:
    return tokens.transpose(-1, -2).flatten()


def _snake(tokens: Tensor) -> Tensor:
    # every second line is walked backwards, so that neighbours in the order are neighbours in the grid
    while tokens.dim() > 1:
        odd = torch.arange(tokens.shape[-2], device=tokens.device) % 2 == 1
        tokens = torch.where(odd[:, None], tokens.flip(-1), tokens).flatten(-2)
    return tokens


def _snake_column(tokens: Tensor) -> Tensor:
    return _snake(tokens.transpose(-1, -2))


def _diagonal(tokens: Tensor) -> Tensor:
    rows, columns = (torch.arange(n, device=tokens.device) for n in tokens.shape[-2:])
    walk = (rows[:, None] + columns).flatten().argsort(stable=True)
    return tokens.flatten(-2)[..., walk].flatten()


def _antidiagonal(tokens: Tensor) -> Tensor:
    return _diagonal(tokens.flip(-1))


def _temporal(tokens: Tensor) -> Tensor:
    return tokens.movedim(0, -1).flatten()


_PATHS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    # name: (path, fewest grid axes on which it means something)
    "raster": (_raster, 1),
    "column": (_column, 2),
    "snake": (_snake, 2),
    "snake_column": (_snake_column, 2),
    "diagonal": (_diagonal, 2),
    "antidiagonal": (_antidiagonal, 2),
    "temporal": (_temporal, 3),
}
_ALIASES = {"forward": "raster", "backward": "raster_reverse"}

ORDER_NAMES = (*_ALIASES, *(name + suffix for name in _PATHS for suffix in ("", "_reverse")))


@typed
def scan_order(name: str, grid: int | Sequence[int], device: torch.device | str | None = None) -> ScanOrder:
    """Return the order called `name` on `grid`.

    Names: `raster` (rows; frames outermost), `column`, `snake` and `snake_column` (every second line backwards),
    `diagonal` and `antidiagonal` (within a frame), `temporal` (frames innermost), each also with `_reverse`;
    `forward` and `backward` are the paper's words for `raster` and `raster_reverse`.

    Args:
        name: one of the names above.
        grid: length, (rows, columns) or (frames, rows, columns).
        device: where the two index tensors live.

    Raises:
        ValueError: the name is unknown, the grid is not 1 to 3 positive integers, or it has too few axes for the name.

    Reference:
        Eqs. 6-7 (forward, backward); the snakes of PlainMamba, the columns of VMamba, the diagonal of the v2 figure.

    Example:
        >>> scan_order("snake", (2, 3)).index
        tensor([0, 1, 2, 5, 4, 3])
    """
    # a size that torch.export keeps open is a SymInt, and len() of a tensor would fix it
    sides = (grid,) if isinstance(grid, (int, torch.SymInt)) else tuple(grid)
    if not 1 <= len(sides) <= 3 or any([not isinstance(side, (int, torch.SymInt)) or side < 1 for side in sides]):
        raise ValueError(f"grid must be 1 to 3 positive integers, got {sides}")
    if math.prod(sides) > LARGEST:
        raise ValueError(f"grid has {math.prod(sides)} tokens: expected at most {LARGEST}")
    full = _ALIASES.get(name, name)
    base = full.removesuffix("_reverse")
    if base not in _PATHS:
        raise unknown_choice("scan order", name, ORDER_NAMES)
    path, axes = _PATHS[base]
    if len(sides) < axes:
        raise ValueError(f"scan order {name!r} needs a grid of at least {axes} axes, got {sides}")
    tokens = torch.arange(math.prod(sides), device=device).view(sides)
    index = path(tokens)
    if full != base:
        index = index.flip(0)
    return ScanOrder(index, index.argsort())


@typed
def scan_orders(
    specs: Sequence[str | Sequence[int]], grid: int | Sequence[int], device: torch.device | str | None = None
) -> list[ScanOrder]:
    """Return one order per entry of `specs`: a name of `scan_order`, or the token numbers themselves.

    Raises:
        ValueError: `specs` is empty, a name is unknown, or token numbers do not visit every token once.

    Example:
        >>> [order.index.tolist() for order in scan_orders(["backward", (1, 0, 2)], 3)]
        [[2, 1, 0], [1, 0, 2]]
    """
    if not specs:
        raise ValueError("specs is empty: expected at least one scan order")
    orders = []
    for spec in specs:
        order = scan_order("raster", grid, device) if not isinstance(spec, str) else scan_order(spec, grid, device)
        if not isinstance(spec, str):
            if sorted(spec) != list(range(len(order.index))):
                raise ValueError(f"a scan order must visit each of {len(order.index)} tokens once, got {list(spec)}")
            index = torch.tensor(spec, device=device)
            order = ScanOrder(index, index.argsort())
        orders.append(order)
    return orders


def stack_orders(orders: Sequence[ScanOrder], length: int) -> ScanOrder:
    """Stack orders of `length` tokens above each other, (direction, length).

    Raises:
        ValueError: there is no order, or one visits another number of tokens.
        TypeError: an entry is not a `ScanOrder`.
    """
    if not len(orders):
        raise ValueError("orders is empty: expected one scan order per direction")
    # lists inside all() and any(): the dynamo of older torches traces no generator
    for number, order in enumerate(orders):
        if not isinstance(order, ScanOrder) or not all([isinstance(part, Tensor) for part in order]):
            raise TypeError(f"orders[{number}] is {order!r}: expected a ScanOrder, as scan_order gives")
        if not order.index.shape[0] == order.inverse.shape[0] == length:
            raise ValueError(f"orders visit {order.index.shape[0]} tokens, there are {length}")
    indices, inverses = zip(*orders, strict=True)
    return ScanOrder(torch.stack(indices).long(), torch.stack(inverses).long())


class _Permute(torch.autograd.Function):
    """Gather along one axis; the backward is the gather by the inverse, where autograd would scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor, dim: int) -> Tensor:
        return x.index_select(dim, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        _, index, inverse, ctx.dim = inputs
        ctx.save_for_backward(index, inverse)
        ctx.save_for_forward(index, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        index, inverse = ctx.saved_tensors
        return _Permute.apply(grad, inverse, index, ctx.dim), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        index, inverse = ctx.saved_tensors
        return _Permute.apply(tangent, index, inverse, ctx.dim)


@typed
def permute_tokens(x: Float[Tensor, "..."], order: ScanOrder, dim: int = -2) -> Float[Tensor, "..."]:
    """Bring the tokens of `x` (axis `dim`) into scan order. `order.undo()` brings them back.

    Raises:
        ValueError: there is no such axis, or it has another length than the order.
    """
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"x has {x.dim()} axes, and no axis {dim}")
    if x.shape[dim] != order.index.shape[0]:
        raise ValueError(f"order has {order.index.shape[0]} tokens, axis {dim} of x has {x.shape[dim]}")
    if torch.compiler.is_compiling():
        # dynamo cannot trace a function with a forward-mode rule; the compiled backward fuses its scatter anyway
        return x.index_select(dim, order.index)
    return _Permute.apply(x, order.index, order.inverse, dim)
