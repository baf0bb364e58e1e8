"""The short causal convolution in front of a scan, along the same orders as the scan."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
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
) -> Float[Tensor, "batch direction length dim"]:
    """Depthwise convolution over the last `width` tokens that each direction has visited.

    With r(t) the token visited at step t:  y[r(t)] = bias + sum_j weight[j] x[r(t - width + 1 + j)], zero before the
    start. The output stands in natural token order.

    Args:
        x: tokens, shared by all directions.
        weight: one kernel per direction and channel, oldest token first.
        bias: one per direction and channel.
        orders: one scan order per direction; None visits 0, 1, 2, ... in every direction.

    Raises:
        ValueError: there is not one order per direction.

    Example:
        >>> x = torch.arange(3.0).view(1, 3, 1)
        >>> causal_conv1d(x, torch.tensor([[[10.0, 1.0]]])).flatten()
        tensor([ 0.,  1., 12.])
    """
    if orders is not None and len(orders) != len(weight):
        raise ValueError(f"weight has {len(weight)} directions, orders {len(orders)}")
    outputs = []
    for k, kernel in enumerate(weight):
        x_scan = x if orders is None else permute_tokens(x, orders[k])
        padded = F.pad(x_scan.transpose(1, 2), (kernel.shape[-1] - 1, 0))
        bias_k = None if bias is None else bias[k]
        y_scan = F.conv1d(padded, kernel[:, None], bias_k, groups=len(kernel)).transpose(1, 2)
        outputs.append(y_scan if orders is None else permute_tokens(y_scan, orders[k].undo()))
    return torch.stack(outputs, 1)
