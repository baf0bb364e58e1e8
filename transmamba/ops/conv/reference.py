"""The convolution, written as it is defined. Every other backend is tested against this file."""

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.ops.conv.inputs import ConvInputs
from transmamba.ops.orders import ScanOrder, permute_tokens


def unsupported_reasons(inputs: ConvInputs) -> list[str]:
    """Return no reasons, because plain torch runs everything."""
    return []


def run(inputs: ConvInputs) -> Tensor:
    """Return y (b, k, l, d), direction by direction on permuted tokens; in at least float32, rounded once."""
    compute = torch.float64 if inputs.x.dtype == torch.float64 else torch.float32
    x, weight = inputs.x.to(compute), inputs.weight.to(compute)
    bias, before = (None if t is None else t.to(compute) for t in (inputs.bias, inputs.initial_tokens))
    orders, inverses, segments = inputs.orders, inputs.inverses, inputs.segments
    outputs = []
    for k, kernel in enumerate(weight):
        order = None if orders is None or inverses is None else ScanOrder(orders[k], inverses[k])
        x_scan = x if order is None else permute_tokens(x, order)
        past = x.new_zeros(x.shape[0], kernel.shape[1] - 1, x.shape[2]) if before is None else before[:, k]
        if not x.shape[1]:
            outputs.append(x_scan)
            continue
        seen = torch.cat([past, x_scan], 1)
        bias_k = None if bias is None else bias[k]
        if segments is None:
            y_scan = F.conv1d(seen.transpose(1, 2), kernel[:, None], bias_k, groups=len(kernel)).transpose(1, 2)
        else:
            y_scan = _convolve_packed(seen, kernel, segments if order is None else segments[:, order.index])
            y_scan = y_scan if bias_k is None else y_scan + bias_k
        outputs.append(y_scan if order is None else permute_tokens(y_scan, order.undo()))
    y = torch.stack(outputs, 1)
    return (F.silu(y) if inputs.silu else y).to(inputs.x.dtype)


def _convolve_packed(seen: Tensor, kernel: Tensor, segments: Tensor) -> Tensor:
    """Sum tap by tap, so that each omits tokens of an earlier sequence; those before the start belong to the first."""
    width, length = kernel.shape[1], segments.shape[1]
    changes = (segments[:, 1:] != segments[:, :-1]).cumsum(1)
    run = F.pad(changes, (width, 0))
    y = seen[:, width - 1 :] * kernel[:, -1]
    for j in range(width - 1):
        same = run[:, j : j + length] == run[:, width - 1 :]
        y = y + (seen[:, j : j + length] * kernel[:, j]).masked_fill(~same[..., None], 0.0)
    return y
