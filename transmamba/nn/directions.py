"""Scans along given orders: which ones a mixer follows, and one scan along one of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from transmamba.ops import ScanOrder, permute_tokens, scan_order


def orders_of(
    count: int, orders: Sequence[ScanOrder] | None, x: Tensor, seq_idx: Tensor | None = None
) -> Sequence[ScanOrder | None]:
    """Return one order per direction, None for tokens as they come.

    Args:
        count: number of directions.
        orders: None is forward for one direction, forward and backward for two.
        x: tokens, (batch, token, dim).
        seq_idx: number of the packed sequence each token belongs to.

    Raises:
        ValueError: there is not one order per direction, or one mixes packed sequences.
    """
    if orders is None and count == 1:
        return [None]
    if orders is None and count == 2:
        return [None, scan_order("backward", x.shape[1], x.device)] if x.shape[1] else [None, None]
    if orders is None or len(orders) != count:
        directions = "1 direction" if count == 1 else f"{count} directions"
        given = "no scan orders" if orders is None else f"{len(orders)} scan orders"
        raise ValueError(f"a mixer of {directions} got {given}: expected one per direction")
    # the check looks at numbers, which a compiled graph cannot
    if seq_idx is not None and not torch.compiler.is_compiling():
        for number, order in enumerate(orders):
            if bool((_changes(seq_idx[:, order.index]) > _changes(seq_idx)).any()):
                raise ValueError(
                    f"scan order {number} goes to and fro between packed sequences, so that its scan would restart "
                    "inside of them: pack sequences for forward and backward scans only"
                )
    return orders


def _changes(seq_idx: Tensor) -> Tensor:
    """Return how often another packed sequence begins, by row."""
    return (seq_idx[:, 1:] != seq_idx[:, :-1]).sum(1)


def check_one_direction(count: int) -> None:
    """Raise ValueError if a mixer of that many directions cannot go on from a cache."""
    if count != 1:
        raise ValueError(f"decoding goes forward: it needs a mixer of 1 direction, this one has {count}")


def visit(order: ScanOrder | None, *tensors: Tensor | None) -> list[Any]:
    """Bring tensors of tokens, (batch, token, ...), into scan order; those of whole numbers without gradient."""
    if order is None:
        return list(tensors)
    return [
        None if t is None else permute_tokens(t, order, 1) if t.is_floating_point() else t[:, order.index]
        for t in tensors
    ]


def with_sum(shares: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the output, which is the sum of the shares and the bias that belongs to none of them, and the shares."""
    mixed = shares.sum(0)
    return (mixed if bias is None else mixed + bias), shares


def mix_along(
    mix: Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, Any]],
    x: Tensor,
    orders: Sequence[ScanOrder] | None,
    mask: Tensor | None,
    seq_idx: Tensor | None,
) -> Tensor:
    """Return the output of `mix(x, mask, seq_idx)` when the tokens come in the one order; forward by default.

    Raises:
        ValueError: there is more than one order, or it mixes packed sequences.
    """
    (order,) = orders_of(1, orders, x, seq_idx)
    mixed = mix(*visit(order, x, mask, seq_idx))[0]
    return mixed if order is None else permute_tokens(mixed, order.undo())
