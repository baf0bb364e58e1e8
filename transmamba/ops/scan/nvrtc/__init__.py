"""CUDA kernels of our own, compiled at first use by NVRTC: no toolkit, no build at installation.

sources/ holds the kernels, variants.py their compile-time variants, compiler.py and driver.py reach NVIDIA's libraries.
Time is staged chunk by chunk in shared memory, so that a step size is computed once; states stay in registers; sums go
over lanes, then over the warps of a block, then over blocks: in a fixed order, so results are reproducible. The forward
keeps the states at chunk starts, the backward recomputes the rest.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from transmamba.ops.scan.inputs import ScanGradients, ScanInputs, output_dtype
from transmamba.ops.scan.nvrtc import compiler, driver
from transmamba.ops.scan.nvrtc.arguments import Arguments
from transmamba.ops.scan.nvrtc.driver import Launch
from transmamba.ops.scan.nvrtc.variants import (
    CHUNK,
    DTYPES,
    MOST_STATES,
    Variant,
    shared_variant_of,
    spans_of,
    variant_of,
)
from transmamba.ops.scan.parts import over_directions, per_direction, restarts, total, untouched
from transmamba.ops.shapes import allocate

CHAIN = 128  # threads of a block that composes spans, as in chain.h


def unavailable() -> tuple[str, ...]:
    """List the reasons why this installation cannot run the kernels on any GPU; none if the libraries were found."""
    return tuple(reason for found, reason in (compiler.library(), driver.library()) if found is None)


def incapable(index: int) -> tuple[str, ...]:
    """List the reasons why the CUDA device of that index cannot run the kernels."""
    old = torch.version.hip is not None or torch.cuda.get_device_capability(index) < (8, 0)
    reasons = unavailable() + (("needs an NVIDIA GPU of compute capability 8.0 or higher",) if old else ())
    return reasons or driver.trial(index)


# torch.compile calls it while tracing, and traces no search for libraries; torch.compiler.assume_constant_result sets
# the same mark, but imports Triton
incapable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def unsupported_reasons(inputs: ScanInputs) -> list[str]:
    """List the reasons why the kernels cannot take these inputs."""
    u, states = inputs.u, inputs.A.shape[1]
    reasons = [] if u.device.type == "cuda" else [f"needs a CUDA tensor, u is on {u.device}"]
    if u.device.type == "cuda":
        reasons += incapable(u.device.index)
    if u.dtype not in DTYPES:
        reasons.append(f"computes in float32 and does not take {str(u.dtype).removeprefix('torch.')}")
    if not 0 < states <= MOST_STATES:
        reasons.append(f"takes 1 to {MOST_STATES} states per channel, got {states}")
    return reasons


def multiprocessors(device: torch.device) -> int:
    """Count the multiprocessors of the device, one where there is none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def launch(variant: Variant, name: str, what: Launch, arguments: Arguments, device: torch.device) -> None:
    """Run a kernel; tests run it on a CPU."""
    driver.launch(variant.options, name, what, arguments, device)


class Prepared(NamedTuple):
    """Inputs with contiguous constants, the arguments of all their kernels, and the tensors to which these point."""

    inputs: ScanInputs
    arguments: Arguments
    keep: list[Tensor | None]


def _prepare(p: ScanInputs) -> Prepared:
    _, directions, length, channels, _ = p.sizes
    A, D, bias, start = (None if x is None else x.contiguous() for x in (p.A, p.D, p.dt_bias, p.initial_state))
    assert A is not None
    orders = None if p.orders is None else p.orders.to(torch.int32).contiguous()
    restart = restarts(p)
    arguments = Arguments().set(u=p.u, dt=p.dt, B=p.B, C=p.C, A=A, D=D, bias=bias, orders=orders, restart=restart)
    arguments.set(A_direction=per_direction(A), D_direction=per_direction(D), bias_direction=per_direction(bias))
    arguments.set(K=directions, L=length, channels=channels)
    return Prepared(p._replace(A=A, D=D, dt_bias=bias, initial_state=start), arguments, [orders, restart])


def _borders(prepared: Prepared, span: int, spans: int, grad_y: Tensor | None, start: Tensor | None) -> Tensor | None:
    """Return states before the spans (b, k, spans, n, d), or with `grad_y` the adjoints after them; None if zero."""
    if spans == 1:
        return start
    p, adjoint = prepared.inputs, grad_y is not None
    batch, directions, length, channels, states = p.sizes
    variant = variant_of(p, "forward", [p.u, p.dt, p.B, p.C, p.u if grad_y is None else grad_y]).flagged(SAVE=True)
    gain, decay, border = (p.A.new_empty(batch, directions, spans, states, channels) for _ in range(3))
    arguments = Arguments.from_buffer_copy(prepared.arguments)
    arguments.set(last=gain, saved=decay, span=span, spans=spans, first=int(adjoint), flags=variant.bits)
    arguments.set(y=p.u if grad_y is None else grad_y)
    grid = (variant.groups(batch, directions), -(-channels // variant.channels), spans - 1)
    name = "summarise_adjoint" if adjoint else "summarise"
    launch(variant, name, Launch(grid, variant.threads, variant.shared), arguments, p.u.device)
    arguments.set(enter=start, dA=border)
    grid = (batch * directions, -(-states * channels // CHAIN), 1)
    launch(variant, "chain_adjoint" if adjoint else "chain", Launch(grid, CHAIN), arguments, p.u.device)
    return border


def _outputs(
    variant: Variant, like: Tensor, dtype: torch.dtype | None, sizes: tuple[int, int, int], arguments: Arguments
) -> tuple[Variant, Tensor, Tensor]:
    """Allocate the outputs of `directions`, or the sum to `wanted` where a kernel can add them up.

    Args:
        variant: the variant that would keep directions apart.
        like: the input whose layout the outputs have.
        dtype: of outputs that are kept apart; None for that of `like`.
        sizes: (directions, wanted, spans).
        arguments: receives the flags and the sum.

    Returns:
        the variant to launch, the tensor that its warps write, the outputs.
    """
    directions, wanted, spans = sizes
    if variant.single and wanted < directions <= variant.directions and spans == 1:
        variant, found = variant.merging(), allocate(like, 1)
        batch, _, length, channels = like.shape
        # by token, all directions side by side, as in single.h
        rows = (batch, -(-channels // variant.channels), length * directions, variant.channels)
        parts = like.new_empty(rows, dtype=torch.float32)
        arguments.set(sum=found)
    else:
        parts = found = allocate(like, directions, dtype)
    arguments.set(flags=variant.bits)
    return variant, parts, found


def forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs, last states, and the states at chunk starts if `save`."""
    y, last, saved = _forward(inputs, save)
    return y.to(output_dtype(inputs)), last, saved


def backward(inputs: ScanInputs, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> ScanGradients:
    """Return the gradients of every floating input."""
    wide = inputs
    if grad_y.dtype != inputs.u.dtype:
        # the kernels read all activations in one dtype, and rounding the gradient of a gate would lose digits
        wide = inputs._replace(u=inputs.u.float(), dt=inputs.dt.float(), B=inputs.B.float(), C=inputs.C.float())
    found = _backward(wide, saved, grad_y, grad_last)
    u, dt, B, C = (x.to(inputs.u.dtype) for x in (found.u, found.dt, found.B, found.C))
    return found._replace(u=u, dt=dt, B=B, C=C)


def _forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, directions, length, channels, states = inputs.sizes
    summed = inputs.merge and directions > 1
    full = inputs.u.dtype != torch.float32 and (inputs.unrounded or summed)
    last = inputs.A.new_empty(batch, directions, states, channels)
    saved = inputs.A.new_empty((batch, directions, -(-length // CHUNK), states, channels) if save else 0)
    if not inputs.u.numel():
        last = last.zero_() if inputs.initial_state is None else last.copy_(inputs.initial_state)
        return allocate(inputs.u, 1 if inputs.merge else directions), last, saved
    prepared = _prepare(inputs)
    p = prepared.inputs
    tensors = [p.u, p.dt, p.B, p.C]  # outputs are allocated in the layout of an input
    variant = shared_variant_of(p, "forward", tensors) or variant_of(p, "forward", tensors)
    # FULL: results yet to be gated or added up are float32 where inputs are narrower
    variant = variant.flagged(FULL=full, SAVE=save)
    groups = variant.groups(batch, directions)
    span, spans = spans_of(variant, groups, length, channels, multiprocessors(p.u.device))
    enter = _borders(prepared, span, spans, None, p.initial_state)
    arguments = prepared.arguments.set(last=last, saved=saved if save else None, enter=enter)
    # a kernel that adds up rounds the sum
    wanted = 1 if summed and not (full and p.unrounded) else directions
    dtype = torch.float32 if full else None
    variant, parts, y = _outputs(variant, p.u, dtype, (directions, wanted, spans), arguments)
    arguments.set(y=parts, span=span, spans=spans)
    grid = (groups, -(-channels // variant.channels), spans)
    launch(variant, "scan_forward", Launch(grid, variant.threads, variant.shared), arguments, p.u.device)
    return over_directions(y, p.u, 1, output_dtype(p)) if p.merge else y, last, saved


def _backward(inputs: ScanInputs, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> ScanGradients:
    if not inputs.u.numel():
        return untouched(inputs, grad_last)
    prepared = _prepare(inputs)
    p = prepared.inputs
    batch, directions, length, channels, states = p.sizes
    tensors = [p.u, p.dt, p.B, p.C, grad_y]
    variant = shared_variant_of(p, "backward", tensors) or variant_of(p, "backward", tensors)
    # a kernel that takes all directions adds up the gradients of tensors that all of them share, but for u's
    alone = variant.kind == "shared_backward"
    full = p.u.dtype != torch.float32 and directions > 1 and (p.u.shape[1] == 1 or (p.dt.shape[1] == 1 and not alone))
    dtype, variant = torch.float32 if full else None, variant.flagged(FULL=full)
    groups = variant.groups(batch, directions)
    span, spans = spans_of(variant, groups, length, channels, multiprocessors(p.u.device))
    leave = _borders(prepared, span, spans, grad_y, None if grad_last is None else grad_last.contiguous())
    blocks, own = -(-channels // variant.channels), 1 if alone else directions
    new = p.A.new_empty
    dB = new(blocks, batch, directions, length, states)
    dC = new(blocks, batch, 1 if "ONE" in variant.flags else directions, length, states)
    dA, dstart = new(spans, batch, own, states, channels), new(batch, directions, states, channels)
    dD = None if p.D is None else new(spans, batch, directions, channels)
    dbias = None if p.dt_bias is None else new(spans, batch, own, channels)
    variant, parts, du = _outputs(variant, p.u, dtype, (directions, p.u.shape[1], spans), prepared.arguments)
    ddt = allocate(p.dt, own, None if alone else dtype)
    arguments = prepared.arguments.set(y=grad_y, du=parts, ddt=ddt, saved=saved, enter=leave, last=dstart)
    arguments.set(dA=dA, dB=dB, dC=dC, dD=dD, dbias=dbias, span=span, spans=spans)
    grid = (groups, blocks, spans)
    launch(variant, "scan_backward", Launch(grid, variant.threads, variant.shared), arguments, p.u.device)
    return ScanGradients(
        over_directions(du, p.u, p.u.shape[1], p.u.dtype),
        over_directions(ddt, p.dt, p.dt.shape[1], p.dt.dtype),
        total(dA, p.A, (0, 1)),
        total(dB, p.B, (0,)),
        total(dC, p.C, (0,)),
        None if dD is None or p.D is None else total(dD, p.D, (0, 1)),
        None if dbias is None or p.dt_bias is None else total(dbias, p.dt_bias, (0, 1)),
        None if p.initial_state is None else dstart,
    )
