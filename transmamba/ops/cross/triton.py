"""Cross scans in Triton: queries are read inside the scan, so that no state but the checkpoints reaches memory.

Time is not split into spans: a batch with few channels leaves a large GPU idle.
"""

from typing import Any

from torch import Tensor

from transmamba.ops.cross.inputs import CrossGradients, CrossInputs, queue_of
from transmamba.ops.scan.parts import over_directions, parts_of, strides, total
from transmamba.ops.scan.triton import CHUNK as CHUNK
from transmamba.ops.scan.triton import PART, common_arguments
from transmamba.ops.scan.triton.tiles import ENTRIES, power
from transmamba.ops.triton import launch, unmet


def unsupported_reasons(inputs: CrossInputs) -> list[str]:
    """List the reasons why the kernels cannot take these inputs."""
    return unmet(inputs.u) + ([] if inputs.A.shape[1] else ["needs at least one state"])


def _inputs(p: CrossInputs) -> tuple[CrossInputs, tuple[int, int], dict[str, Any]]:
    """Make the constants contiguous, and return them with the grid and the arguments that both kernels have."""
    p, arguments = common_arguments(p)
    batch, directions, _, channels, states = p.sizes
    width = max(1, min(ENTRIES // power(states), 64, power(channels)))
    queue, first = queue_of(p)
    arguments |= {"queue": queue, "first": first, "queries": p.C.shape[2]}
    arguments |= {"PART": PART, "N": power(states), "W": width}
    return p, (batch * directions, -(-channels // width)), arguments


def forward(inputs: CrossInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs, last states, and the states at chunk starts if `save`."""
    p, grid, arguments = _inputs(inputs)
    batch, directions, length, channels, states = p.sizes
    merged = p.merge and directions > 1
    y = p.u.new_empty(batch, directions, p.C.shape[2], channels, dtype=p.A.dtype if merged else None)
    last = p.A.new_empty(batch, directions, states, channels)
    saved = p.A.new_empty((batch, directions, -(-length // CHUNK), states, channels) if save else 0)
    if last.numel():
        from transmamba.ops.cross.triton_kernels import cross_forward

        outputs = {"y": y, "y_at": strides(y), "last": last, "saved": saved if save else None}
        launch(cross_forward, grid, p.u.device, arguments | outputs)
    return y.sum(1, keepdim=True).to(p.u.dtype) if merged else y, last, saved


def backward(inputs: CrossInputs, saved: Tensor, grad_y: Tensor | None, grad_last: Tensor | None) -> CrossGradients:
    """Return the gradients of every floating input."""
    p, grid, arguments = _inputs(inputs)
    batch, directions, length, channels, states = p.sizes
    parts = CrossGradients(
        parts_of(p.u, directions, p.u.shape[1], p.u.dtype),
        parts_of(p.dt, directions, p.dt.shape[1], p.dt.dtype),
        p.A.new_empty(batch, directions, states, channels),
        p.A.new_empty(grid[1], batch, directions, length, states),
        p.A.new_zeros(grid[1], batch, directions, p.C.shape[2], states),
        None if p.dt_bias is None else p.A.new_empty(batch, directions, channels),
    )
    if parts.A.numel():
        from transmamba.ops.cross.triton_kernels import cross_backward

        arguments |= dict(zip(("du", "ddt", "dA", "dB", "dC", "dbias"), parts, strict=True))
        arguments |= {"du_at": strides(parts.u), "ddt_at": strides(parts.dt), "saved": saved, "grad_y": grad_y}
        arguments |= {"grad_y_at": (0, 0, 0, 0) if grad_y is None else strides(grad_y)}
        arguments["grad_last"] = None if grad_last is None else grad_last.contiguous()
        launch(cross_backward, grid, p.u.device, arguments)
    return CrossGradients(
        over_directions(parts.u, p.u, p.u.shape[1], p.u.dtype),
        over_directions(parts.dt, p.dt, p.dt.shape[1], p.dt.dtype),
        total(parts.A[None], p.A, (0, 1)),
        total(parts.B, p.B, (0,)),
        total(parts.C, p.C, (0,)),
        None if parts.dt_bias is None or p.dt_bias is None else total(parts.dt_bias[None], p.dt_bias, (0, 1)),
    )
