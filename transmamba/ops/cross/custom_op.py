"""Hand-written cross scans as two custom ops, as `opaque` has them for plain scans.

A backend module offers `CHUNK`, `forward(problem, save)` and `backward(problem, saved, grad_y, grad_last)`, of which
either gradient may be None.
"""

from typing import Any

import torch
from torch import Tensor

from transmamba.ops.backends import chunked_cross, cross_reference, triton_cross
from transmamba.ops.backends.cross_problem import CrossProblem
from transmamba.ops.backends.native import cross as native_cross
from transmamba.ops.backends.opaque import _LIBRARY, _check_orders, _define, _without_autocast
from transmamba.ops.backends.plain import refuse_kernels
from transmamba.ops.backends.problem import allocate
from transmamba.ops.backends.second import differentiate_again

KERNELS: dict[str, Any] = {"triton": triton_cross, "native": native_cross, "chunked": chunked_cross}  # fastest first
_TENSORS = 8  # leading fields of CrossProblem that are tensors
_GRADIENTS = 6  # of these have a gradient, in the order of `CrossGradients`


def refuse_opaque(name: str, problem: CrossProblem) -> list[str]:
    """What the backend `name` itself objects to, and what no custom op can do."""
    return KERNELS[name].refuse(problem) + refuse_kernels()


def run_opaque(name: str, problem: CrossProblem) -> tuple[Tensor, Tensor]:
    """Outputs (b, 1|k, q, d) and last states (b, k, n, d) of the backend `name`."""
    grad = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in problem)
    save = grad and not torch.compiler.is_exporting()  # as in `opaque`
    y, last_state, _ = torch.ops.transmamba.cross_forward.default(name, *problem, save)
    return y, last_state


@_define("cross_forward")
def _forward(
    name: str,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor | None,
    orders: Tensor | None,
    reads: Tensor,
    softplus: bool,
    merge: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = CrossProblem(u, dt, A, B, C, dt_bias, orders, reads, softplus, merge)
    problem.check()
    _check_orders(orders, u.shape[2])
    _check_reads(reads, u.shape[2])
    with _without_autocast(u.device):
        return KERNELS[name].forward(problem, save)


def _check_reads(reads: Tensor, length: int) -> None:
    # on a GPU the look would cost a synchronisation, and no kernel follows a number that is out of range
    if reads.device.type != "cpu" or reads.numel() == 0:
        return
    low, high = (int(x) for x in reads.aminmax())
    if low < 0 or high >= length:
        raise ValueError(f"reads must hold context tokens 0 to {length - 1}, got {low} to {high}")


@torch.library.register_fake("transmamba::cross_forward", lib=_LIBRARY)
def _(name: str, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    p, save = CrossProblem(*args[:-1]), args[-1]
    batch, directions, length, channels, state = p.sizes
    chunks = -(-length // KERNELS[name].CHUNK)
    return (
        p.u.new_empty(batch, 1 if p.merge else directions, p.C.shape[2], channels),
        p.A.new_empty(batch, directions, state, channels),
        p.A.new_empty((batch, directions, chunks, state, channels) if save else (0,)),
    )


@_define("cross_backward")
def _backward(
    name: str,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor | None,
    orders: Tensor | None,
    reads: Tensor,
    softplus: bool,
    merge: bool,
    saved: Tensor,
    grad_y: Tensor | None,
    grad_last: Tensor | None,
) -> list[Tensor]:
    problem = CrossProblem(u, dt, A, B, C, dt_bias, orders, reads, softplus, merge)
    with _without_autocast(u.device):
        gradients = KERNELS[name].backward(problem, saved, grad_y, grad_last)
    return [x for x in gradients if x is not None]


@torch.library.register_fake("transmamba::cross_backward", lib=_LIBRARY)
def _(name: str, *args: Any) -> list[Tensor]:
    p = CrossProblem(*args[: len(CrossProblem._fields)])
    return [allocate(p.u, p.u.shape[1]), allocate(p.dt, p.dt.shape[1])] + [
        x.new_empty(x.shape) for x in (p.A, p.B, p.C, p.dt_bias) if x is not None
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.name, ctx.flags, ctx.save = inputs[0], inputs[1 + _TENSORS : -1], inputs[-1]
    ctx.save_for_backward(*inputs[1 : 1 + _TENSORS], output[2])


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    if not ctx.save:
        saved = torch.ops.transmamba.cross_forward.default(ctx.name, *tensors, *ctx.flags, True)[2]
    backward = torch.ops.transmamba.cross_backward.default
    found = iter(backward(ctx.name, *tensors, *ctx.flags, saved, grad_y, grad_last))
    grads = [None if x is None else next(found) for x in tensors[:_GRADIENTS]]
    return (None, *grads, *(None,) * (len(tensors) - _GRADIENTS + len(ctx.flags) + 1))


torch.library.register_autograd("transmamba::cross_forward", _differentiate, setup_context=_setup_context, lib=_LIBRARY)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.flags = inputs[1 + _TENSORS : -3]
    ctx.save_for_backward(*inputs[1 : 1 + _TENSORS], *inputs[-2:])


def _differentiate_again(ctx: Any, cotangents: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    *tensors, grad_y, grad_last = ctx.saved_tensors

    def run(tensors: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        with _without_autocast(ctx.saved_tensors[0].device):
            return cross_reference.run(CrossProblem(*tensors, *ctx.flags))  # type: ignore[arg-type]

    inputs, outputs = differentiate_again(run, tensors, (grad_y, grad_last), cotangents)
    return (None, *inputs, *(None,) * (len(ctx.flags) + 1), *outputs)


torch.library.register_autograd(
    "transmamba::cross_backward", _differentiate_again, setup_context=_setup_second, lib=_LIBRARY
)
