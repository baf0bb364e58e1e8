"""Who can run the causal convolution: the table beside that of the scans, and the compiled ones as custom ops.

A compiled backend is a module with `refuse(convolution)`, `forward(convolution)` and `backward(convolution, grad_y)`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.ops.backends import triton_conv
from transmamba.ops.backends.native import convolution as native
from transmamba.ops.backends.plain import refuse_kernels
from transmamba.ops.backends.problem import Convolution
from transmamba.ops.backends.second import differentiate_again
from transmamba.ops.orders import ScanOrder, permute_tokens

KERNELS: dict[str, Any] = {"triton": triton_conv, "native": native}
_FIELDS = len(Convolution._fields)
_GRADIENTS = (0, 1, 2, 6)  # fields of Convolution that have a gradient, in the order of `ConvolutionGradients`


class Convolver(NamedTuple):
    """A way to run a `Convolution`; no reasons from `refuse` mean that it can."""

    name: str
    run: Callable[[Convolution], Tensor]
    refuse: Callable[[Convolution], list[str]]


def run_plain(convolution: Convolution) -> Tensor:
    """The definition, in plain torch, direction by direction on permuted tokens; in at least float32, rounded once."""
    compute = torch.float64 if convolution.x.dtype == torch.float64 else torch.float32
    x, weight = convolution.x.to(compute), convolution.weight.to(compute)
    bias, before = (None if t is None else t.to(compute) for t in (convolution.bias, convolution.initial_tokens))
    orders, inverses, segments = convolution.orders, convolution.inverses, convolution.segments
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
    return (F.silu(y) if convolution.silu else y).to(convolution.x.dtype)


def _convolve_packed(seen: Tensor, kernel: Tensor, segments: Tensor) -> Tensor:
    """Tap by tap, so that each leaves out the tokens of an earlier sequence; what precedes belongs to the first."""
    width, length = kernel.shape[1], segments.shape[1]
    changes = (segments[:, 1:] != segments[:, :-1]).cumsum(1)
    run = F.pad(changes, (width, 0))
    y = seen[:, width - 1 :] * kernel[:, -1]
    for j in range(width - 1):
        same = run[:, j : j + length] == run[:, width - 1 :]
        y = y + (seen[:, j : j + length] * kernel[:, j]).masked_fill(~same[..., None], 0.0)
    return y


def _refuse(name: str, convolution: Convolution) -> list[str]:
    return KERNELS[name].refuse(convolution) + refuse_kernels()


# a lower level than `torch.library.custom_op`, whose wrappers cost more than a small convolution
_LIBRARY = torch.library.Library("transmamba", "FRAGMENT")
_INPUTS = (
    "str name, Tensor x, Tensor weight, Tensor? bias, Tensor? orders, Tensor? inverses, Tensor? segments, "
    "Tensor? initial_tokens, bool silu"
)
for _signature in (f"conv_forward({_INPUTS}) -> Tensor", f"conv_backward({_INPUTS}, Tensor grad_y) -> Tensor[]"):
    _LIBRARY.define(_signature, tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl(_LIBRARY, "conv_forward", "CompositeExplicitAutograd")
def _forward(name: str, *fields: Any) -> Tensor:
    convolution = Convolution(*fields)
    convolution.check()
    return KERNELS[name].forward(convolution)


@torch.library.impl(_LIBRARY, "conv_backward", "CompositeExplicitAutograd")
def _backward(name: str, *inputs: Any) -> list[Tensor]:
    gradients = KERNELS[name].backward(Convolution(*inputs[:_FIELDS]), inputs[_FIELDS])
    return [x for x in gradients if x is not None]


@torch.library.register_fake("transmamba::conv_forward", lib=_LIBRARY)
def _(name: str, x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[1:])


@torch.library.register_fake("transmamba::conv_backward", lib=_LIBRARY)
def _(name: str, *inputs: Any) -> list[Tensor]:
    return [inputs[i].new_empty(inputs[i].shape) for i in _GRADIENTS if inputs[i] is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.name, ctx.silu = inputs[0], inputs[_FIELDS]
    ctx.save_for_backward(*inputs[1:_FIELDS])


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    found = iter(torch.ops.transmamba.conv_backward.default(ctx.name, *tensors, ctx.silu, grad_y))
    grads: list[Tensor | None] = [None] * (_FIELDS + 1)
    for i in _GRADIENTS:
        grads[1 + i] = None if tensors[i] is None else next(found)
    return tuple(grads)


torch.library.register_autograd("transmamba::conv_forward", _differentiate, setup_context=_setup_context, lib=_LIBRARY)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.silu = inputs[_FIELDS]
    ctx.save_for_backward(*inputs[1:_FIELDS], inputs[-1])


def _differentiate_again(ctx: Any, cotangents: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    *tensors, grad_y = ctx.saved_tensors

    def run(tensors: list[Tensor | None]) -> tuple[Tensor]:
        return (run_plain(Convolution(*tensors, ctx.silu)),)  # type: ignore[arg-type, call-arg]

    inputs, outputs = differentiate_again(run, tensors, (grad_y,), cotangents)
    return (None, *inputs, None, *outputs)


torch.library.register_autograd(
    "transmamba::conv_backward", _differentiate_again, setup_context=_setup_second, lib=_LIBRARY
)


def _run(name: str, convolution: Convolution) -> Tensor:
    return torch.ops.transmamba.conv_forward.default(name, *convolution)


CONVOLVERS = (
    *(Convolver(name, partial(_run, name), partial(_refuse, name)) for name in KERNELS),
    *(Convolver(name, run_plain, lambda convolution: []) for name in ("chunked", "reference")),
)


def choose_convolver(convolution: Convolution, name: str, preferred: str) -> Convolver:
    """The one called `name`; for "auto", `preferred` if it can and plain torch if not; without a preference the first.

    A preference speaks about scans, and not every backend of a scan has a convolution, or one for every case.

    Raises:
        ValueError: there is no convolution of that name.
        NotImplementedError: the named one refuses; the message has its reasons.
    """
    table = {convolver.name: convolver for convolver in CONVOLVERS}
    if name == "auto":
        if preferred == "auto" or preferred not in table:
            return next(convolver for convolver in CONVOLVERS if not convolver.refuse(convolution))
        return table["reference"] if table[preferred].refuse(convolution) else table[preferred]
    if name not in table:
        raise ValueError(f"unknown convolution backend {name!r}: expected auto, {', '.join(table)}")
    reasons = table[name].refuse(convolution)
    if reasons:
        x, accepting = convolution.x, ", ".join(c.name for c in CONVOLVERS if not c.refuse(convolution))
        raise NotImplementedError(
            f"convolution backend {name!r} refuses x {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on "
            f"{x.device}:\n" + "".join(f"  {reason}\n" for reason in reasons) + f"accepting here: {accepting}"
        )
    return table[name]
