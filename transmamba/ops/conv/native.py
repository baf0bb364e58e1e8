"""The causal convolution compiled for the CPU: each direction reads the tokens it visits where they lie (native.h)."""

import torch
from torch import Tensor

from transmamba.ops.conv.inputs import ConvGradients, ConvInputs
from transmamba.ops.native.library import DTYPES, Conv, are_permutations, array, available, fresh, run

WIDEST = 32  # as in native.h


def unsupported_reasons(inputs: ConvInputs) -> list[str]:
    """List the reasons not to run here: another device or dtype, or no library."""
    x, width = inputs.x, inputs.weight.shape[2]
    reasons = []
    if x.device.type != "cpu":
        reasons.append(f"runs on a CPU, x is on {x.device}")
    if x.dtype not in DTYPES:
        reasons.append(f"needs float32, bfloat16, float16 or float64, x is {x.dtype}")
    if not 1 <= width <= WIDEST:
        reasons.append(f"needs a width of 1 to {WIDEST}, not {width}")
    if not available():
        reasons.append("its library was not built: see the refusal of the native scan for the remedy")
    return reasons


def forward(inputs: ConvInputs, *, variant: str | None = None) -> Tensor:
    """Return the outputs (b, k, l, d); `variant` forces an instruction set."""
    x = inputs.x
    y = fresh(x.new_empty(len(x), len(inputs.weight), *x.shape[1:]))
    conv, _keep = _describe(inputs)
    conv.y = array(y, 0, 1, 2, 3)
    run(conv, backward=False, variant=variant)
    return y


def backward(inputs: ConvInputs, grad_y: Tensor, *, variant: str | None = None) -> ConvGradients:
    """Return the gradients of every floating input, from that of the outputs."""
    x, weight, bias, before = (getattr(inputs, n) for n in ("x", "weight", "bias", "initial_tokens"))
    conv, _keep = _describe(inputs)
    compute = torch.float64 if conv.wide else torch.float32
    grad_y = grad_y if grad_y.stride(-1) == 1 else grad_y.contiguous()
    dx = fresh(torch.empty(x.shape, dtype=x.dtype if len(weight) == 1 else compute))
    # one slot per batch element, summed afterwards: the same result on any number of threads
    dweight = torch.empty(len(x), len(weight), weight.shape[2], weight.shape[1], dtype=compute)
    dbias = None if bias is None else torch.empty(len(x), *bias.shape, dtype=compute)
    dbefore = None if before is None else torch.empty(before.shape, dtype=x.dtype)
    conv.grad_y, conv.dx, conv.dbefore = array(grad_y, 0, 1, 2, 3), array(dx[:, None], 0, 1, 2, 3), _tokens(dbefore)
    conv.dweight = array(dweight, 0, 1, 2, 3)
    conv.dbias = array(dbias, 0, 1, None, 2)
    run(conv, backward=True, variant=variant)
    return ConvGradients(
        dx.to(x.dtype),
        dweight.sum(0).transpose(1, 2).to(weight.dtype).contiguous(),
        None if dbias is None or bias is None else dbias.sum(0).to(bias.dtype),
        dbefore,
    )


def _describe(inputs: ConvInputs) -> tuple[Conv, list[Tensor | None]]:
    """Return the convolution by pointers, and the tensors that must outlive them.

    Raises:
        ValueError: a row of `orders` is not a permutation of the tokens.
    """
    x, weight, bias, orders, _, segments, before, silu = inputs
    batch, length, channels = x.shape
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x if x.stride(-1) == 1 else x.contiguous()
    before = before if before is None or before.stride(-1) == 1 else before.contiguous()
    taps = weight.to(compute).transpose(1, 2).contiguous()
    bias = None if bias is None else bias.to(compute).contiguous()
    orders, segments = (None if t is None else t.contiguous() for t in (orders, segments))
    if orders is not None and not are_permutations(orders):
        raise ValueError(f"orders must hold a permutation of range({length}) in every row: build them with scan_order")
    conv = Conv(batch, len(weight), length, channels, weight.shape[2], _part(batch, channels))
    conv.wide, conv.silu = compute == torch.float64, silu
    conv.orders, conv.segments = (None if t is None else t.data_ptr() for t in (orders, segments))
    conv.x, conv.before = array(x[:, None], 0, 1, 2, 3), _tokens(before)
    conv.weight, conv.bias = array(taps, None, 0, 1, 2), array(bias, None, 0, None, 1)
    return conv, [x, taps, bias, orders, segments, before]


def _tokens(before: Tensor | None) -> object:
    return array(before, 0, 1, 2, 3)


def _part(batch: int, channels: int) -> int:
    """Return the channels per unit of work: all, or as few as give every thread two units; whole cache lines."""
    parts = -(-2 * torch.get_num_threads() // max(1, batch)) if torch.get_num_threads() > 1 else 1
    return max(64, -(-channels // parts // 64) * 64)
