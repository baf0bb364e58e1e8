"""Kernels in Triton for NVIDIA GPUs: nothing is compiled at installation, nothing is flipped or permuted.

A program keeps the states of a block of channels in registers and walks along time; the order of a direction is
looked up step by step. Directions whose dt and A agree at every step (PlainMamba's official form) share a program
and their exponentials. Where batch, directions and channels are too few to fill the GPU, time is split into spans.
No atomics: partial sums are written apart and added afterwards, so results are reproducible.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from transmamba.ops.scan.inputs import ScanGradients, ScanInputs, output_dtype
from transmamba.ops.scan.parts import over_directions, parts_of, per_direction, restarts, strides, total, untouched
from transmamba.ops.scan.triton.tiles import Tiles, cut
from transmamba.ops.triton import launch, unmet

CHUNK = 16
PART = 4  # steps whose loads are under way together, and whose states the backward holds
FEW = 2  # with so few states registers hold longer parts, and the inputs of a part beside its states


def unsupported_reasons(inputs: ScanInputs) -> list[str]:
    """List the reasons why the kernels cannot take these inputs."""
    return unmet(inputs.u) + ([] if inputs.A.shape[1] else ["needs at least one state"])


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def common_arguments(p: Any) -> tuple[Any, dict[str, Any]]:
    """Make the constants of a scan or cross scan contiguous, and return them with the arguments of its kernels."""
    p = p._replace(A=p.A.contiguous(), dt_bias=_contiguous(p.dt_bias), orders=_contiguous(p.orders))
    _, directions, length, channels, states = p.sizes
    rows = {"u": p.u, "dt": p.dt, "B": p.B, "C": p.C}
    by_row = {f"{name}_at": strides(x) for name, x in rows.items()}
    constants = {"A": p.A, "A_at": per_direction(p.A), "bias": p.dt_bias, "bias_at": per_direction(p.dt_bias)}
    sizes = {"K": directions, "L": length, "channels": channels, "states": states}
    return p, rows | by_row | constants | sizes | {"orders": p.orders, "CHUNK": CHUNK, "SOFTPLUS": p.softplus}


def _inputs(p: ScanInputs) -> tuple[ScanInputs, dict[str, Any]]:
    """Make the constants contiguous, and return them with the arguments that both kernels have."""
    p, arguments = common_arguments(p._replace(D=_contiguous(p.D)))
    few = arguments["states"] <= FEW
    arguments |= {"D": p.D, "D_at": per_direction(p.D), "restart": restarts(p), "PART": 2 * PART if few else PART}
    return p, arguments | {"BY_STEP": p.parameters_by_step, "ONCE": few}


class Driver(NamedTuple):
    """The input that drives a state: u through B, or its adjoint: grad_y through C."""

    x: Tensor
    M: Tensor
    adjoint: bool


def _borders(
    p: ScanInputs, tiles: Tiles, arguments: dict[str, Any], driver: Driver, start: Tensor | None
) -> Tensor | None:
    """Return the states before the spans (b, k, spans, n, d), or the adjoints after them."""
    start, spans = _contiguous(start), tiles.grid[2]
    if spans == 1:
        return start
    from transmamba.ops.scan.triton.spans import chain_spans, summarise_spans

    batch, directions, _, channels, states = p.sizes
    gain = p.A.new_empty(batch, directions, spans, states, channels)
    decay = p.A.new_empty(batch, 1 if tiles.shared else directions, spans, states, channels)
    maps = {"decay": decay, "gain": gain, "ADJOINT": driver.adjoint}
    summary = maps | {"x": driver.x, "M": driver.M, "x_at": strides(driver.x), "M_at": strides(driver.M)}
    launch(summarise_spans, tiles.grid, p.u.device, arguments | summary)
    border, block = torch.empty_like(gain), 256
    chain = maps | {"start": start, "border": border, "K": directions, "spans": spans, "size": states * channels}
    chain |= {"BLOCK": block, "SHARED": tiles.shared}
    launch(chain_spans, (batch * directions, -(-states * channels // block)), p.u.device, chain)
    return border


def forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs, last states, and the states at chunk starts if `save`."""
    p, arguments = _inputs(inputs)
    batch, directions, length, channels, states = p.sizes
    y = parts_of(p.u, directions, 1 if p.merge else directions, output_dtype(p))
    last = p.A.new_empty(batch, directions, states, channels)
    saved = p.A.new_empty((batch, directions, -(-length // CHUNK), states, channels) if save else 0)
    if not p.u.numel():
        last = last.zero_() if p.initial_state is None else last.copy_(p.initial_state)
        return y[:, :1] if p.merge else y, last, saved
    from transmamba.ops.scan.triton.forward_kernel import scan_forward

    tiles = cut(p, CHUNK)
    arguments |= tiles.shape | {"y": y, "y_at": strides(y), "last": last, "saved": saved if save else None}
    enter = _borders(p, tiles, arguments, Driver(p.u, p.B, adjoint=False), p.initial_state)
    launch(scan_forward, tiles.grid, p.u.device, arguments | {"enter": enter})
    return over_directions(y, p.u, 1, output_dtype(p)) if p.merge else y, last, saved


def backward(inputs: ScanInputs, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> ScanGradients:
    """Return the gradients of every floating input."""
    p, arguments = _inputs(inputs)
    if not p.u.numel():
        return untouched(p, grad_last)
    from transmamba.ops.scan.triton.backward_kernel import scan_backward

    tiles = cut(p, CHUNK)
    parts = _parts(p, tiles)
    names = ("du", "ddt", "dA", "dB", "dC", "dD", "dbias", "dstart")
    arguments |= tiles.shape | dict(zip(names, parts, strict=True))
    arguments |= {"saved": saved, "grad_y": grad_y, "grad_y_at": strides(grad_y)}
    arguments |= {"du_at": strides(parts.u), "ddt_at": strides(parts.dt)}
    leave = _borders(p, tiles, arguments, Driver(grad_y, p.C, adjoint=True), grad_last)
    for turn in range(tiles.turns):
        taken = {"leave": leave, "turn": turn, "ADD": turn > 0}
        launch(scan_backward, tiles.backward_grid, p.u.device, arguments | taken)
    return ScanGradients(
        over_directions(parts.u, p.u, p.u.shape[1], p.u.dtype),
        over_directions(parts.dt, p.dt, p.dt.shape[1], p.dt.dtype),
        total(parts.A, p.A, (0, 1)),
        total(parts.B, p.B, (0,)),
        total(parts.C, p.C, (0,)),
        None if parts.D is None or p.D is None else total(parts.D, p.D, (0, 1)),
        None if parts.dt_bias is None or p.dt_bias is None else total(parts.dt_bias, p.dt_bias, (0, 1)),
        None if p.initial_state is None else parts.initial_state,
    )


def _parts(p: ScanInputs, tiles: Tiles) -> ScanGradients:
    """Allocate the tensors in which the backward kernel leaves its gradients, see there."""
    batch, directions, length, channels, states = p.sizes
    decays, (_, blocks, spans) = 1 if tiles.shared else directions, tiles.backward_grid
    dB, dC = (p.A.new_empty(blocks, batch, directions, length, states) for _ in range(2))
    return ScanGradients(
        parts_of(p.u, directions, p.u.shape[1], p.u.dtype),
        parts_of(p.dt, decays, p.dt.shape[1], p.dt.dtype),
        p.A.new_empty(spans, batch, decays, states, channels),
        dB,
        dC,
        None if p.D is None else p.A.new_empty(spans, batch, directions, channels),
        None if p.dt_bias is None else p.A.new_empty(spans, batch, decays, channels),
        p.A.new_empty(batch, directions, states, channels),
    )
