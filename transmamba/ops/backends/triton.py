"""Kernels in Triton for NVIDIA GPUs: nothing is compiled at installation, nothing is flipped or permuted.

A program keeps the states of a block of channels in registers and walks along time; the order of a direction is
looked up step by step. Directions whose dt and A agree at every step (PlainMamba's official form) share a program
and their exponentials. Where batch, directions and channels are too few to fill the GPU, time is split into spans.
No atomics: partial sums are written apart and added afterwards, so results are reproducible.
"""

import functools
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transmamba.ops.backends.problem import Gradients, Problem, allocate

CHUNK = 16
PART = 8


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, which also takes CPU tensors."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def refuse(problem: Problem) -> list[str]:
    """Reasons why the kernels cannot take this problem."""
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("package triton is not installed")
    if problem.u.device.type != "cuda" and (reasons or not interpreted()):
        reasons.append("needs a CUDA tensor")
    if problem.u.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        reasons.append(f"computes in float32 and does not take {str(problem.u.dtype).removeprefix('torch.')}")
    if problem.sizes[-1] == 0:
        reasons.append("needs at least one state")
    return reasons


class Tiles(NamedTuple):
    """How a kernel is cut into programs."""

    rows: int
    states: int
    width: int
    shared: bool
    grid: tuple[int, int]


def _power(x: int) -> int:
    return 1 << (x - 1).bit_length()


def _shares_decay(p: Problem) -> bool:
    same_steps = p.step_parameters or p.orders is None
    one_decay = p.dt.shape[1] == 1 and p.A.shape[0] == 1 and (p.dt_bias is None or p.dt_bias.shape[0] == 1)
    return p.directions > 1 and one_decay and same_steps and p.segments is None


def _tiles(p: Problem, entries: int) -> Tiles:
    """Tiles of about `entries` states."""
    batch, directions, _, channels, states = p.sizes
    shared = _shares_decay(p)
    rows = _power(directions) if shared else 1
    width = max(1, min(entries // (rows * _power(states)), 64, _power(channels)))
    return Tiles(rows, _power(states), width, shared, (batch if shared else batch * directions, -(-channels // width)))


def _strides(x: Tensor) -> tuple[int, ...]:
    """Strides, zero along a direction that all share."""
    return (x.stride(0), 0 if x.shape[1] == 1 else x.stride(1), x.stride(2), x.stride(3))


def _per_direction(x: Tensor | None) -> int:
    return 0 if x is None or x.shape[0] == 1 else x[0].numel()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _restarts(p: Problem) -> Tensor | None:
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
    strides = {f"{name}_at": _strides(x) for name, x in rows.items()}
    steps = {f"{name}_at": _per_direction(x) for name, x in constants.items()}
    sizes = {"K": directions, "L": length, "channels": channels, "states": states, "CHUNK": CHUNK}
    flags = {"SOFTPLUS": p.softplus, "STEP_PARAMETERS": p.step_parameters}
    return p, rows | constants | strides | steps | sizes | flags | {"orders": p.orders, "restart": _restarts(p)}


def _launch(kernel: Any, tiles: Tiles, spans: int, device: torch.device, arguments: dict[str, Any]) -> None:
    on_device = torch.cuda.device(device) if device.type == "cuda" else functools.partial(torch.no_grad)()
    shape = {"Q": tiles.rows, "N": tiles.states, "W": tiles.width, "SHARED": tiles.shared}
    with on_device:
        kernel[(*tiles.grid, spans)](**arguments, **shape, num_warps=1, enable_fp_fusion=True)


def forward(problem: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last states, and the states at chunk starts if `save`."""
    p, arguments = _inputs(problem)
    batch, directions, length, channels, states = p.sizes
    y = allocate(p.u, directions)
    enter = _contiguous(p.initial_state)
    last = p.A.new_empty(batch, directions, states, channels)
    saved = p.A.new_empty((batch, directions, -(-length // CHUNK), states, channels) if save else 0)
    if not last.numel() or not length:
        last = last.zero_() if enter is None else last.copy_(enter)
        return y[:, :1] if p.merge else y, last, saved
    from transmamba.ops.backends.triton_forward import scan_forward

    outputs = {"y": y, "last": last, "saved": saved if save else None, "y_at": _strides(y)}
    tiles = _tiles(p, 512)
    _launch(scan_forward, tiles, 1, p.u.device, arguments | outputs | {"enter": enter, "span": length})
    return _over_directions(y, p.u, 1) if p.merge else y, last, saved


def _over_directions(x: Tensor, template: Tensor, directions: int) -> Tensor:
    """The sum over directions if they share one tensor, else x itself."""
    if x.shape[1] == directions:
        return x
    return torch.sum(x, 1, keepdim=True, out=allocate(template, 1))


def backward(problem: Problem, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients of every floating input."""
    p, arguments = _inputs(problem)
    batch, directions, length, channels, states = p.sizes
    tiles = _tiles(p, 128)
    decays, blocks, spans = 1 if tiles.shared else directions, tiles.grid[1], 1
    du, ddt = allocate(p.u, directions), allocate(p.dt, decays)
    dB, dC = (p.A.new_empty(blocks, batch, directions, length, states) for _ in range(2))
    dA = p.A.new_empty(spans, batch, decays, states, channels)
    dD = None if p.D is None else p.A.new_empty(spans, batch, directions, channels)
    dbias = None if p.dt_bias is None else p.A.new_empty(spans, batch, decays, channels)
    dstart = p.A.new_empty(batch, directions, states, channels)
    if not dstart.numel() or not length:
        dstart = dstart.zero_() if grad_last is None else dstart.copy_(grad_last)
        return _nothing(p)._replace(initial_state=None if p.initial_state is None else dstart)
    from transmamba.ops.backends.triton_backward import scan_backward

    outputs = {"du": du, "ddt": ddt, "dA": dA, "dB": dB, "dC": dC, "dD": dD, "dbias": dbias, "dstart": dstart}
    strides = {"grad_y_at": _strides(grad_y), "du_at": _strides(du), "ddt_at": _strides(ddt)}
    rest = {"saved": saved, "leave": _contiguous(grad_last), "grad_y": grad_y, "span": length, "PART": PART}
    _launch(scan_backward, tiles, spans, p.u.device, arguments | outputs | strides | rest)
    return Gradients(
        _over_directions(du, p.u, p.u.shape[1]),
        _over_directions(ddt, p.dt, p.dt.shape[1]),
        _total(dA, p.A),
        _total(dB, p.B, keep_batch=True),
        _total(dC, p.C, keep_batch=True),
        None if dD is None or p.D is None else _total(dD, p.D),
        None if dbias is None or p.dt_bias is None else _total(dbias, p.dt_bias),
        None if p.initial_state is None else dstart,
    )


def _nothing(p: Problem) -> Gradients:
    u, dt, A, B, C = (torch.zeros_like(x) for x in p[:5])
    D, dt_bias, start = (None if x is None else torch.zeros_like(x) for x in (p.D, p.dt_bias, p.initial_state))
    return Gradients(u, dt, A, B, C, D, dt_bias, start)


def _total(parts: Tensor, like: Tensor, keep_batch: bool = False) -> Tensor:
    """Parts (parts, b, k, ...) summed to the shape and dtype of `like`."""
    direction = 1 if keep_batch else 0
    shared = like.shape[direction] == 1 and parts.shape[2] > 1
    axes = (0,) if keep_batch else (0, 1)
    total = parts.sum(axes)
    return (total.sum(direction, keepdim=True) if shared else total).to(like.dtype)
