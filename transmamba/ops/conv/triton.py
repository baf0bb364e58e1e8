"""The depthwise causal convolution before a scan, with its bias and SiLU in one kernel of Triton.

    y_t = act(bias + sum_j weight[:, j] x_(t - width + 1 + j))          tokens before the first are zero

`reverse` looks ahead instead of back, as if the sequence had been flipped before and after, which it is not.
"""

from typing import Any

import torch
from torch import Tensor

from transmamba.ops.conv.inputs import ConvGradients, ConvInputs
from transmamba.ops.shapes import allocate
from transmamba.ops.triton import launch, unmet

TIME, WIDTH = 32, 32  # of a tile; WIDTH counts channels


def conv_reasons(x: Tensor, weight: Tensor) -> list[str]:
    """List the reasons why the kernels cannot take x (b, l, d) and weight (d, width)."""
    width = weight.shape[1]
    return unmet(x) + ([] if 2 <= width <= 4 else [f"needs a width of 2, 3 or 4, not {width}"])


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """Return the outputs (b, l, d) in the dtype of x, in natural order."""
    y = _like(x)
    if x.numel():
        from transmamba.ops.conv.triton_kernels import conv_forward_kernel

        arguments, grid = _arguments(x, weight, bias, silu, reverse)
        launch(conv_forward_kernel, grid, x.device, arguments | {"y": y, "y_at": y.stride()}, warps=4)
    return y


def conv_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, grad_y: Tensor, *, rounded: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, in float32 unless `rounded`, weight and bias."""
    dx = _like(x, None if rounded else torch.float32)
    if not x.numel():
        return dx, torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    from transmamba.ops.conv.triton_kernels import conv_backward_kernel

    arguments, grid = _arguments(x, weight, bias, silu, reverse)
    dweight = x.new_empty(*grid[:2], weight.shape[1], x.shape[2], dtype=torch.float32)
    dbias = None if bias is None else x.new_empty(*grid[:2], x.shape[2], dtype=torch.float32)
    arguments |= {"grad_y": grad_y, "grad_y_at": grad_y.stride(), "dx": dx, "dx_at": dx.stride()}
    launch(conv_backward_kernel, grid, x.device, arguments | {"dweight": dweight, "dbias": dbias}, warps=4)
    total = None if dbias is None or bias is None else dbias.sum((0, 1)).to(bias.dtype)
    return dx, dweight.sum((0, 1)).T.to(weight.dtype), total


def unsupported_reasons(inputs: ConvInputs) -> list[str]:
    """List the reasons why the kernels cannot take the inputs."""
    reasons = conv_reasons(inputs.x, inputs.weight[0])
    if inputs.segments is not None or inputs.initial_tokens is not None:
        reasons.append("knows neither packed sequences nor initial tokens")
    return reasons


def forward(inputs: ConvInputs) -> Tensor:
    """Return the outputs (b, k, l, d); tokens are permuted where there are orders."""
    outputs = []
    for k, arguments in enumerate(_directions(inputs)):
        y_scan = conv_forward(*arguments, inputs.silu, False)
        outputs.append(_gather(y_scan, inputs.inverses, k))
    return torch.stack(outputs, 1)


def backward(inputs: ConvInputs, grad_y: Tensor) -> ConvGradients:
    """Return the gradients of every floating input."""
    parts, alone = [], len(inputs.weight) == 1
    for k, arguments in enumerate(_directions(inputs)):
        grad_scan = _gather(grad_y[:, k], inputs.orders, k)
        dx_scan, dweight, dbias = conv_backward(*arguments, inputs.silu, False, grad_scan, rounded=alone)
        parts.append((_gather(dx_scan, inputs.inverses, k), dweight, dbias))
    dx, dweights, dbiases = zip(*parts, strict=True)
    dbias = None if inputs.bias is None else torch.stack(dbiases)
    total = dx[0] if alone else torch.stack(dx).sum(0).to(inputs.x.dtype)
    return ConvGradients(total, torch.stack(dweights), dbias, None)


def _directions(inputs: ConvInputs) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    x, weight, bias, orders = inputs[:4]
    return [(_gather(x, orders, k), weight[k], None if bias is None else bias[k]) for k in range(len(weight))]


def _gather(x: Tensor, orders: Tensor | None, k: int) -> Tensor:
    return x if orders is None else x.index_select(1, orders[k])


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return allocate(x[:, None], 1, dtype)[:, 0]


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    batch, length, channels = x.shape
    tensors = {"x": x, "weight": weight, "bias": None if bias is None else bias.contiguous()}
    strides = {"x_at": x.stride(), "weight_at": weight.stride()}
    flags = {"WIDTH": weight.shape[1], "STEP": -1 if reverse else 1, "SILU": silu, "T": TIME, "W": WIDTH}
    grid = (batch, -(-length // TIME), -(-channels // WIDTH))
    return tensors | strides | flags | {"L": length, "channels": channels}, grid
