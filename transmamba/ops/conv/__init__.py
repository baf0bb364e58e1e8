"""The short causal convolution in front of a scan, along the same orders as the scan."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from transmamba._typing import typed
from transmamba.ops.conv import backends as backends  # fills the table
from transmamba.ops.conv.inputs import ConvInputs
from transmamba.ops.dispatch import select_backend
from transmamba.ops.orders import ScanOrder, stack_orders


@typed
def causal_conv1d(
    x: Float[Tensor, "batch length dim"],
    weight: Float[Tensor, "direction dim width"],
    bias: Float[Tensor, "direction dim"] | None = None,
    *,
    orders: Sequence[ScanOrder] | None = None,
    seq_idx: Int[Tensor, "batch length"] | None = None,
    initial_tokens: Float[Tensor, "batch direction past dim"] | None = None,
    activation: Literal["silu"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch direction length dim"]:
    """Apply a depthwise convolution over the last `width` tokens that each direction has visited.

    With r(t) the token visited at step t:  y[r(t)] = act(bias + sum_j weight[j] x[r(t - width + 1 + j)]), zero before
    the start. The output stands in natural token order and has the dtype of `x`.

    Args:
        x: tokens, shared by all directions.
        weight: one kernel per direction and channel, oldest token first.
        bias: one per direction and channel.
        orders: one scan order per direction; None visits 0, 1, 2, ... in every direction.
        seq_idx: number of the packed sequence each token belongs to; where it changes, earlier tokens are forgotten.
        initial_tokens: the `width - 1` tokens visited before the first one, oldest first; zero by default.
        activation: "silu" is applied in the same pass, and nothing is kept for its backward.
        backend: "triton", "native", or "chunked" and "reference", here both plain torch; "auto" takes the first that
            accepts. A named one runs or refuses.

    Raises:
        ValueError: there is not one order of all tokens per direction, the weight is empty, `initial_tokens` has
            another size, or the backend is unknown.
        NotImplementedError: the named backend refuses.

    Example:
        >>> import torch
        >>> x = torch.arange(3.0).view(1, 3, 1)
        >>> causal_conv1d(x, torch.tensor([[[10.0, 1.0]]])).flatten()
        tensor([ 0.,  1., 12.])
    """
    directions, _, width = weight.shape
    if not directions or not width:
        raise ValueError(f"weight has {directions} directions and width {width}: expected at least 1 of both")
    if orders is not None and len(orders) != directions:
        raise ValueError(f"weight has {directions} directions, orders {len(orders)}")
    if initial_tokens is not None and initial_tokens.shape[1:3] != (directions, width - 1):
        raise ValueError(
            f"initial_tokens must hold {width - 1} tokens (width - 1) for {directions} directions, got "
            f"{initial_tokens.shape[2]} for {initial_tokens.shape[1]}"
        )
    table = None if orders is None else stack_orders(orders, x.shape[1])
    inputs = ConvInputs(
        x,
        weight,
        bias,
        None if table is None else table.index,
        None if table is None else table.inverse,
        None if seq_idx is None else seq_idx.long(),
        None if initial_tokens is None else initial_tokens.to(x.dtype),
        activation == "silu",
    )
    return select_backend("convolution", inputs, backend).run(inputs)
