"""The short causal convolution in front of a scan, along the same orders as the scan."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from transmamba._typing import typed
from transmamba.ops.orders import ScanOrder, permute_tokens


@typed
def causal_conv1d(
    x: Float[Tensor, "batch length dim"],
    weight: Float[Tensor, "direction dim width"],
    bias: Float[Tensor, "direction dim"] | None = None,
    *,
    orders: Sequence[ScanOrder] | None = None,
    seq_idx: Int[Tensor, "batch length"] | None = None,
    initial_tokens: Float[Tensor, "batch direction past dim"] | None = None,
) -> Float[Tensor, "batch direction length dim"]:
    """Depthwise convolution over the last `width` tokens that each direction has visited.

    With r(t) the token visited at step t:  y[r(t)] = bias + sum_j weight[j] x[r(t - width + 1 + j)], zero before the
    start. The output stands in natural token order.

    Args:
        x: tokens, shared by all directions.
        weight: one kernel per direction and channel, oldest token first.
        bias: one per direction and channel.
        orders: one scan order per direction; None visits 0, 1, 2, ... in every direction.
        seq_idx: number of the packed sequence each token belongs to; where it changes, what came before is forgotten.
        initial_tokens: the `width - 1` tokens visited before the first one, oldest first; zero by default.

    Raises:
        ValueError: there is not one order per direction, or `initial_tokens` has another size.

    Example:
        >>> x = torch.arange(3.0).view(1, 3, 1)
        >>> causal_conv1d(x, torch.tensor([[[10.0, 1.0]]])).flatten()
        tensor([ 0.,  1., 12.])
    """
    directions, _, width = weight.shape
    if orders is not None and len(orders) != directions:
        raise ValueError(f"weight has {directions} directions, orders {len(orders)}")
    before = x.new_zeros(x.shape[0], directions, width - 1, x.shape[-1]) if initial_tokens is None else initial_tokens
    if before.shape[1:3] != (directions, width - 1):
        raise ValueError(
            f"initial_tokens must hold {width - 1} tokens (width - 1) for {directions} directions, got "
            f"{before.shape[2]} for {before.shape[1]}"
        )
    outputs = []
    for k, kernel in enumerate(weight):
        x_scan = x if orders is None else permute_tokens(x, orders[k])
        seen = torch.cat([before[:, k], x_scan], 1)
        bias_k = None if bias is None else bias[k]
        if seq_idx is None:
            y_scan = F.conv1d(seen.transpose(1, 2), kernel[:, None], bias_k, groups=len(kernel)).transpose(1, 2)
        else:
            y_scan = _convolve_packed(seen, kernel, seq_idx if orders is None else seq_idx[:, orders[k].index])
            y_scan = y_scan if bias_k is None else y_scan + bias_k
        outputs.append(y_scan if orders is None else permute_tokens(y_scan, orders[k].undo()))
    return torch.stack(outputs, 1)


def _convolve_packed(seen: Tensor, kernel: Tensor, seq_idx: Tensor) -> Tensor:
    """Tap by tap, so that each leaves out the tokens of an earlier sequence; what precedes belongs to the first."""
    width, length = kernel.shape[1], seq_idx.shape[1]
    changes = (seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(1)
    run = F.pad(changes, (width, 0))
    y = seen[:, width - 1 :] * kernel[:, -1]
    for j in range(width - 1):
        same = run[:, j : j + length] == run[:, width - 1 :]
        y = y + (seen[:, j : j + length] * kernel[:, j]).masked_fill(~same[..., None], 0.0)
    return y
