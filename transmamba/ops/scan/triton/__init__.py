"""Kernels in Triton for NVIDIA GPUs: nothing is compiled at installation, nothing is flipped or permuted.

A program keeps the states of a block of channels in registers and walks along time; the order of a direction is
looked up step by step. Directions whose dt and A agree at every step (PlainMamba's official form) share a program
and their exponentials. Where batch, directions and channels are too few to fill the GPU, time is split into spans.
No atomics: partial sums are written apart and added afterwards, so results are reproducible.
"""

import contextlib
import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transmamba.ops.backends.problem import Gradients, Problem, allocate, output_dtype
from transmamba.ops.backends.triton_tiles import Tiles, cut

CHUNK = 16
PART = 4  # steps whose loads are under way together, and whose states the backward holds
FEW = 2  # with so few states registers hold longer parts, and the inputs of a part beside its states


# looked up once: torch.compile traces neither a search for packages nor the environment
INSTALLED = importlib.util.find_spec("triton") is not None
# in its interpreter Triton also takes CPU tensors; it decides when it is imported
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def unmet(x: Tensor) -> list[str]:
    """What Triton lacks to take x."""
    reasons = []
    if not INSTALLED:
        reasons.append("package triton is not installed")
    if x.device.type != "cuda" and not (INSTALLED and INTERPRETED):
        reasons.append(f"needs a CUDA tensor, u is on {x.device}")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        reasons.append(f"computes in float32 and does not take {str(x.dtype).removeprefix('torch.')}")
    return reasons


def refuse(problem: Problem) -> list[str]:
    """Reasons why the kernels cannot take this problem."""
    return unmet(problem.u) + ([] if problem.A.shape[1] else ["needs at least one state"])


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, arguments: dict[str, Any], warps: int = 1) -> None:
    """Run a kernel on those of the arguments that it names."""
    named = {name: arguments[name] for name in kernel.arg_names}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        # fusion is asked for since Triton is about to change its default
        kernel[grid](**named, num_warps=warps, enable_fp_fusion=True)


def strides(x: Tensor) -> tuple[int, ...]:
    """Strides, zero along a direction that all share."""
    return (x.stride(0), 0 if x.shape[1] == 1 else x.stride(1), x.stride(2), x.stride(3))


def per_direction(x: Tensor | None) -> int:
    """Stride of a constant by direction, zero if all share it or there is none."""
    return 0 if x is None or x.shape[0] == 1 else x[0].numel()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def restarts(p: Problem) -> Tensor | None:
    """(b, k, l) uint8: one where the state restarts before a step."""
    if p.segments is None:
        return None
    batch, directions, length, _, _ = p.sizes
    seen = p.segments[:, None].expand(-1, directions, -1) if p.orders is None else p.segments[:, p.orders]
    restart = torch.zeros(batch, directions, length, dtype=torch.uint8, device=p.u.device)
    restart[..., 1:] = seen[..., 1:] != seen[..., :-1]
    return restart


def _inputs(p: Problem) -> tuple[Problem, dict[str, Any]]:
    """Constants made contiguous, and the arguments that both kernels have."""
    p = p._replace(A=p.A.contiguous(), D=_contiguous(p.D), dt_bias=_contiguous(p.dt_bias), orders=_contiguous(p.orders))
    _, directions, length, channels, states = p.sizes
    rows = {"u": p.u, "dt": p.dt, "B": p.B, "C": p.C}
    constants = {"A": p.A, "D": p.D, "bias": p.dt_bias}
    by_row = {f"{name}_at": strides(x) for name, x in rows.items()}
    steps = {f"{name}_at": per_direction(x) for name, x in constants.items()}
    part = 2 * PART if states <= FEW else PART
    sizes = {"K": directions, "L": length, "channels": channels, "states": states, "CHUNK": CHUNK, "PART": part}
    flags = {"SOFTPLUS": p.softplus, "STEP_PARAMETERS": p.step_parameters, "ONCE": states <= FEW}
    return p, rows | constants | by_row | steps | sizes | flags | {"orders": p.orders, "restart": restarts(p)}


class Driver(NamedTuple):
    """What drives a state: u through B, or its adjoint: grad_y through C."""

    x: Tensor
    M: Tensor
    adjoint: bool


def _borders(
    p: Problem, tiles: Tiles, arguments: dict[str, Any], driver: Driver, start: Tensor | None
) -> Tensor | None:
    """States before the spans (b, k, spans, n, d), or the adjoints after them."""
    start, spans = _contiguous(start), tiles.grid[2]
    if spans == 1:
        return start
    from transmamba.ops.backends.triton_spans import chain_spans, summarise_spans

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


def forward(problem: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last states, and the states at chunk starts if `save`."""
    p, arguments = _inputs(problem)
    batch, directions, length, channels, states = p.sizes
    y = parts_of(p.u, directions, 1 if p.merge else directions, output_dtype(p))
    last = p.A.new_empty(batch, directions, states, channels)
    saved = p.A.new_empty((batch, directions, -(-length // CHUNK), states, channels) if save else 0)
    if not p.u.numel():
        last = last.zero_() if p.initial_state is None else last.copy_(p.initial_state)
        return y[:, :1] if p.merge else y, last, saved
    from transmamba.ops.backends.triton_forward import scan_forward

    tiles = cut(p, CHUNK)
    arguments |= tiles.shape | {"y": y, "y_at": strides(y), "last": last, "saved": saved if save else None}
    enter = _borders(p, tiles, arguments, Driver(p.u, p.B, adjoint=False), p.initial_state)
    launch(scan_forward, tiles.grid, p.u.device, arguments | {"enter": enter})
    return over_directions(y, p.u, 1, output_dtype(p)) if p.merge else y, last, saved


def parts_of(template: Tensor, directions: int, shared: int, dtype: torch.dtype) -> Tensor:
    """Room for what `over_directions` takes: parts that are yet to be summed are not rounded before."""
    return allocate(template, directions, dtype if directions == shared else torch.float32)


def over_directions(x: Tensor, template: Tensor, directions: int, dtype: torch.dtype) -> Tensor:
    """The sum over directions if they share one tensor, else x itself."""
    if x.shape[1] == directions:
        return x
    return torch.sum(x, 1, keepdim=True, out=allocate(template, 1, x.dtype)).to(dtype)


def backward(problem: Problem, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients of every floating input."""
    p, arguments = _inputs(problem)
    if not p.u.numel():
        return untouched(p, grad_last)
    from transmamba.ops.backends.triton_backward import scan_backward

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
    return Gradients(
        over_directions(parts.u, p.u, p.u.shape[1], p.u.dtype),
        over_directions(parts.dt, p.dt, p.dt.shape[1], p.dt.dtype),
        total(parts.A, p.A, (0, 1)),
        total(parts.B, p.B, (0,)),
        total(parts.C, p.C, (0,)),
        None if parts.D is None or p.D is None else total(parts.D, p.D, (0, 1)),
        None if parts.dt_bias is None or p.dt_bias is None else total(parts.dt_bias, p.dt_bias, (0, 1)),
        None if p.initial_state is None else parts.initial_state,
    )


def _parts(p: Problem, tiles: Tiles) -> Gradients:
    """Where the backward kernel leaves its gradients, see there."""
    batch, directions, length, channels, states = p.sizes
    decays, (_, blocks, spans) = 1 if tiles.shared else directions, tiles.backward_grid
    dB, dC = (p.A.new_empty(blocks, batch, directions, length, states) for _ in range(2))
    return Gradients(
        parts_of(p.u, directions, p.u.shape[1], p.u.dtype),
        parts_of(p.dt, decays, p.dt.shape[1], p.dt.dtype),
        p.A.new_empty(spans, batch, decays, states, channels),
        dB,
        dC,
        None if p.D is None else p.A.new_empty(spans, batch, directions, channels),
        None if p.dt_bias is None else p.A.new_empty(spans, batch, decays, channels),
        p.A.new_empty(batch, directions, states, channels),
    )


def untouched(p: Problem, grad_last: Tensor | None) -> Gradients:
    """Gradients where there is nothing to scan: the last state is the initial one."""
    u, dt, A, B, C = (torch.zeros_like(x) for x in p[:5])
    D, dt_bias, start = (None if x is None else torch.zeros_like(x) for x in (p.D, p.dt_bias, p.initial_state))
    return Gradients(u, dt, A, B, C, D, dt_bias, start if start is None or grad_last is None else grad_last.clone())


def total(parts: Tensor, like: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Parts (blocks or spans, b, k, ...) summed over `axes`, and over directions if `like` is shared by them."""
    direction = 2 - len(axes)
    found = parts.sum(axes)
    found = found if like.shape[direction] > 1 else found.sum(direction, keepdim=True)
    return found.to(like.dtype)
