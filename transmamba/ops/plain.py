"""Checks for places where only plain torch operations will do, and the loop of a recurrence in a form that ONNX has."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Step = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Tensor]]


def limits_of_custom_ops() -> list[str]:
    """List the reasons why no compiled kernel can be called here."""
    reasons = []
    if torch._C._are_functorch_transforms_active():
        reasons.append("torch.func transforms need plain torch operations")
    if forward_ad._current_level >= 0:
        reasons.append("forward-mode differentiation needs plain torch operations")
    if exporting_to_onnx():
        reasons.append("ONNX has no operator for it and needs plain torch operations")
    return reasons


def exporting_to_onnx() -> bool:
    """Return whether `torch.onnx.export` is tracing."""
    # asked first, because importing torch.onnx takes long
    return (torch.compiler.is_exporting() or torch.jit.is_tracing()) and torch.onnx.is_in_onnx_export()


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Switch autocast off on the device, if it is on."""
    # dynamo of older torches cannot trace is_autocast_available, and meta is the one device without autocast we meet
    active = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else contextlib.nullcontext()


def walk(step: Step, state: Tensor, inputs: Sequence[Tensor], dim: int) -> tuple[Tensor, Tensor | None]:
    """Return the last state and the stacked outputs of `state, output = step(state, inputs at t)` along axis `dim`.

    The outputs are None if there is no step.
    """
    if torch.compiler.is_exporting() and exporting_to_onnx():
        return _walk_in_graph(step, state, inputs, dim)
    outputs = []
    # unbind, not indexing: the backward of x[:, :, t] fills a whole zero tensor per step
    for now in zip(*(x.unbind(dim) for x in inputs), strict=True):
        state, output = step(state, now)
        outputs.append(output)
    return state, torch.stack(outputs, dim) if outputs else None


def _dense(x: Tensor) -> Tensor:
    # the node wants states of the same strides, also along axes of size one, which `contiguous` leaves as they are
    return x.clone(memory_format=torch.contiguous_format)


def _walk_in_graph(step: Step, state: Tensor, inputs: Sequence[Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """Walk in one node `Scan` for any number of steps; without gradients, which torch cannot export for it."""
    from torch._higher_order_ops.scan import scan

    def apart(before: Tensor, now: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        after, output = step(before, now)
        return _dense(after), output.clone() if output is before else output

    outputs: Any
    state, outputs = scan(apart, _dense(state.detach()), [_dense(x.detach().movedim(dim, 0)) for x in inputs])
    return state, outputs.movedim(0, dim)
