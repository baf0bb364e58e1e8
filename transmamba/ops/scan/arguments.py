"""What the scans make of their arguments before a backend receives them."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from transmamba.ops.orders import ScanOrder, stack_orders

Orders = Sequence[ScanOrder] | Int[Tensor, "direction length"]


def _hide_padding(
    mask: Tensor, tokens: Tensor, dt: Tensor, dt_bias: Tensor | None, *, softplus: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """u, dt and dt_bias whose padded steps have size zero, which leaves the state as it is."""
    padded = ~mask[:, None, :, None]
    if dt_bias is not None and not softplus:
        dt, dt_bias = dt + dt_bias[:, None], None
    # softplus(-inf) is zero
    return tokens.masked_fill(padded, 0.0), dt.masked_fill(padded, -torch.inf if softplus else 0.0), dt_bias


def _dtypes(*inputs: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of the activations (u, dt, B, C) and that of the arithmetic."""
    *activations, A = (x.dtype for x in inputs)
    act = activations[0]
    for dtype in activations[1:]:
        act = torch.promote_types(act, dtype)
    compute = torch.float64 if torch.float64 in (act, A) else torch.float32
    return (compute if compute == torch.float64 else act), compute


def _order_table(orders: Orders | None, length: int) -> Tensor | None:
    if orders is None:
        return None
    if not isinstance(orders, Tensor):
        return stack_orders(orders, length).index
    if orders.shape[1] != length:
        raise ValueError(f"orders visit {orders.shape[1]} tokens, there are {length}")
    return orders.long()
