"""Hand-written backends as two custom ops of `torch.library`, so that compile, export and autograd see one node.

A backend module offers `CHUNK`, `forward(problem, save)` and `backward(problem, saved, grad_y, grad_last)`; fake,
autograd and autocast rules are the same for all and stand here once.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transmamba.ops.backends import chunked, native, nvrtc, reference, triton
from transmamba.ops.backends.plain import refuse_kernels
from transmamba.ops.backends.problem import Problem, allocate, output_dtype
from transmamba.ops.backends.second import differentiate_again

KERNELS: dict[str, Any] = {"nvrtc": nvrtc, "triton": triton, "native": native, "chunked": chunked}  # fastest first
_TENSORS = 10  # leading fields of Problem that are tensors
_GRADIENTS = (0, 1, 2, 3, 4, 5, 6, 9)  # fields of Problem that have a gradient, in the order of `Gradients`


def refuse_opaque(name: str, problem: Problem) -> list[str]:
    """What the backend `name` itself objects to, and what no custom op can do."""
    return KERNELS[name].refuse(problem) + refuse_kernels()


def run_opaque(name: str, problem: Problem) -> tuple[Tensor, Tensor]:
    """Outputs (b, 1|k, l, d) and last states (b, k, n, d) of the backend `name`."""
    grad = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in problem)
    # the number of chunks of what is saved would tie an exported program to lengths of one chunk, or of several
    save = grad and not torch.compiler.is_exporting()
    y, last_state, _ = torch.ops.transmamba.scan_forward.default(name, *problem, save)
    return y, last_state


# a level below `torch.library.custom_op`, whose wrappers take time at every call
_LIBRARY = torch.library.Library("transmamba", "FRAGMENT")


def _define(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the decorated function an op; its schema follows from its annotations."""

    def define(function: Callable[..., Any]) -> Callable[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return function

    return define


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Switch autocast off on the device, if it is on."""
    # dynamo of older torches cannot trace is_autocast_available, and meta is the one device without autocast we meet
    active = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else contextlib.nullcontext()


@_define("scan_forward")
def _forward(
    name: str,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    orders: Tensor | None,
    segments: Tensor | None,
    initial_state: Tensor | None,
    softplus: bool,
    step_parameters: bool,
    merge: bool,
    unrounded: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (u, dt, A, B, C, D, dt_bias, orders, segments, initial_state)
    problem = Problem(*tensors, softplus, step_parameters, merge, unrounded)
    problem.check()
    _check_orders(orders, u.shape[2])
    with _without_autocast(u.device):
        return KERNELS[name].forward(problem, save)


def _check_orders(orders: Tensor | None, length: int) -> None:
    # a kernel would follow a wrong token number out of its memory; on a GPU the look would cost a synchronisation
    if orders is None or orders.device.type != "cpu" or orders.numel() == 0:
        return
    low, high = (int(x) for x in orders.aminmax())
    if low < 0 or high >= length:
        raise ValueError(f"orders must hold token numbers 0 to {length - 1}, got {low} to {high}")


@torch.library.register_fake("transmamba::scan_forward", lib=_LIBRARY)
def _(name: str, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    problem, save = Problem(*args[:-1]), args[-1]
    batch, directions, length, channels, state = problem.sizes
    chunks = -(-length // KERNELS[name].CHUNK)
    return (
        allocate(problem.u, 1 if problem.merge else directions, output_dtype(problem)),
        problem.A.new_empty(batch, directions, state, channels),
        problem.A.new_empty((batch, directions, chunks, state, channels) if save else (0,)),
    )


@_define("scan_backward")
def _backward(
    name: str,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    orders: Tensor | None,
    segments: Tensor | None,
    initial_state: Tensor | None,
    softplus: bool,
    step_parameters: bool,
    merge: bool,
    unrounded: bool,
    saved: Tensor,
    grad_y: Tensor,
    grad_last: Tensor | None,
) -> list[Tensor]:
    tensors = (u, dt, A, B, C, D, dt_bias, orders, segments, initial_state)
    with _without_autocast(u.device):
        problem = Problem(*tensors, softplus, step_parameters, merge, unrounded)
        gradients = KERNELS[name].backward(problem, saved, grad_y, grad_last)
    return [x for x in gradients if x is not None]


@torch.library.register_fake("transmamba::scan_backward", lib=_LIBRARY)
def _(name: str, *args: Any) -> list[Tensor]:
    p = Problem(*args[: len(Problem._fields)])
    rest = (p.A, p.B, p.C, p.D, p.dt_bias, p.initial_state)
    return [allocate(p.u, p.u.shape[1]), allocate(p.dt, p.dt.shape[1])] + [
        x.new_empty(x.shape) for x in rest if x is not None
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.name, ctx.flags, ctx.save = inputs[0], inputs[1 + _TENSORS : -1], inputs[-1]
    ctx.save_for_backward(*inputs[1 : 1 + _TENSORS], output[2])
    ctx.like_y = output[0].shape, output[0].dtype


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    if not ctx.save:
        saved = torch.ops.transmamba.scan_forward.default(ctx.name, *tensors, *ctx.flags, True)[2]
    if grad_y is None:
        shape, dtype = ctx.like_y
        grad_y = tensors[0].new_zeros(shape, dtype=dtype)
    found = iter(torch.ops.transmamba.scan_backward.default(ctx.name, *tensors, *ctx.flags, saved, grad_y, grad_last))
    grads: list[Tensor | None] = [None] * (len(tensors) + len(ctx.flags) + 2)
    for i in _GRADIENTS:
        grads[1 + i] = None if tensors[i] is None else next(found)
    return tuple(grads)


torch.library.register_autograd("transmamba::scan_forward", _differentiate, setup_context=_setup_context, lib=_LIBRARY)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.flags = inputs[1 + _TENSORS : -3]
    ctx.save_for_backward(*inputs[1 : 1 + _TENSORS], *inputs[-2:])


def _differentiate_again(ctx: Any, cotangents: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    *tensors, grad_y, grad_last = ctx.saved_tensors

    def run(tensors: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        with _without_autocast(grad_y.device):
            return reference.run(Problem(*tensors, *ctx.flags))  # type: ignore[arg-type]

    inputs, outputs = differentiate_again(run, tensors, (grad_y, grad_last), cotangents)
    return (None, *inputs, *(None,) * (len(ctx.flags) + 1), *outputs)


torch.library.register_autograd(
    "transmamba::scan_backward", _differentiate_again, setup_context=_setup_second, lib=_LIBRARY
)
