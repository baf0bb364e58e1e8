"""Adapter to mamba-ssm's CUDA kernel, imported on first use.

The kernel scans along memory, so every direction is a permuted copy; all directions go in as groups of one call.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transmamba.ops.plain import limits_of_custom_ops
from transmamba.ops.scan.inputs import ScanInputs, output_dtype

_MAX_STATE = 256


@functools.cache
def load() -> tuple[Callable[..., Any] | None, str]:
    """Load mamba-ssm's `selective_scan_fn`; return it, or None and why it cannot be had."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:  # a kernel built for another torch fails in many ways; none of them may end the program
        return None, (
            f"mamba-ssm's Mamba-1 kernel does not load ({type(error).__name__}: {error}); install it with "
            'MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation "transmamba[cuda]"'
        )
    return selective_scan_fn, ""


def unsupported_reasons(inputs: ScanInputs) -> list[str]:
    """List the reasons why the kernel cannot take these inputs."""
    p = inputs
    if p.u.device.type != "cuda":
        return [f"needs a CUDA tensor, u is on {p.u.device}"]
    if torch.compiler.is_compiling():
        return ["mamba-ssm's kernel cannot be traced by torch.compile"]
    reasons = limits_of_custom_ops()
    if p.u.dtype == torch.float64:
        reasons.append("computes in float32, u is float64")
    if p.segments is not None or p.initial_state is not None:
        reasons.append("knows neither packed sequences nor an initial state")
    if not 0 < p.sizes[-1] <= _MAX_STATE:
        reasons.append(f"takes 1 to {_MAX_STATE} states per channel, got {p.sizes[-1]}")
    if p.u.numel() == 0:
        reasons.append("takes no empty tensor")
    if load()[0] is None:
        reasons.append(load()[1])
    return reasons


class _Once(torch.autograd.Function):
    """The identity, whose backward refuses to be differentiated: the kernel's own would be taken for constant."""

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                'mamba-ssm has no second derivatives, which create_graph=True asks for: use backend="triton"'
            )
        return grad


class _LastState(torch.autograd.Function):
    """The identity, whose backward refuses: the kernel returns no gradient for the last state."""

    @staticmethod
    def forward(state: Tensor, anchor: Tensor) -> Tensor:
        return state.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, None]:
        if grad is not None:
            raise NotImplementedError('mamba-ssm has no gradient for the last state: use backend="triton"')
        return None, None


def run(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Return the outputs (b, 1|k, l, d) and last states (b, k, n, d)."""
    p, (_, directions, _, channels, _) = inputs, inputs.sizes
    scan, _ = load()
    assert scan is not None
    # the kernel rounds its outputs, which must not happen before directions are summed or a gate is applied
    dtype = p.A.dtype if p.unrounded or directions > 1 else p.u.dtype

    def grouped(x: Tensor, *, permuted: bool) -> Tensor:
        x = x.to(dtype).expand(-1, directions, -1, -1)
        if permuted and p.orders is not None:
            x = x.gather(2, p.orders[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[-1]))
        return x.mT.contiguous()

    def flat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.expand(directions, -1).flatten()

    u, own = grouped(p.u, permuted=True), not p.parameters_by_step
    dt, B, C = (grouped(x, permuted=own) for x in (p.dt, p.B, p.C))
    A = p.A.expand(directions, -1, -1).mT.flatten(0, 1)
    y, last = scan(
        u.flatten(1, 2), dt.flatten(1, 2), A, B, C, flat(p.D), None, flat(p.dt_bias), p.softplus, return_last_state=True
    )
    y = y.unflatten(1, (directions, channels)).mT
    if p.orders is not None:
        y = y.gather(2, p.orders.argsort(-1)[None, :, :, None].expand(y.shape[0], -1, -1, channels))
    y = _Once.apply(y)
    last = _LastState.apply(last, y).unflatten(1, (directions, channels)).mT
    return (y.sum(1, keepdim=True) if p.merge else y).to(output_dtype(p)), last
