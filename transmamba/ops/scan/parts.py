"""Inputs and results of GPU kernels: strides, restarts, and partial sums that are added up in a fixed order."""

import torch
from torch import Tensor

from transmamba.ops.scan.inputs import ScanGradients, ScanInputs
from transmamba.ops.shapes import allocate


def strides(x: Tensor) -> tuple[int, ...]:
    """Return the strides, zero along a direction that all share."""
    return (x.stride(0), 0 if x.shape[1] == 1 else x.stride(1), x.stride(2), x.stride(3))


def per_direction(x: Tensor | None) -> int:
    """Return the stride of a constant by direction, zero if all share it or there is none."""
    return 0 if x is None or x.shape[0] == 1 else x[0].numel()


def restarts(p: ScanInputs) -> Tensor | None:
    """Mark restarts, (b, k, l) uint8: one where the state restarts before a step."""
    if p.segments is None:
        return None
    batch, directions, length, _, _ = p.sizes
    seen = p.segments[:, None].expand(-1, directions, -1) if p.orders is None else p.segments[:, p.orders]
    restart = torch.zeros(batch, directions, length, dtype=torch.uint8, device=p.u.device)
    restart[..., 1:] = seen[..., 1:] != seen[..., :-1]
    return restart


def parts_of(template: Tensor, directions: int, shared: int, dtype: torch.dtype) -> Tensor:
    """Allocate the input of `over_directions`: parts that are yet to be summed are not rounded before."""
    return allocate(template, directions, dtype if directions == shared else torch.float32)


def over_directions(x: Tensor, template: Tensor, directions: int, dtype: torch.dtype) -> Tensor:
    """Sum over directions if they share one tensor, else return x itself."""
    if x.shape[1] == directions:
        return x
    return torch.sum(x, 1, keepdim=True, out=allocate(template, 1, x.dtype)).to(dtype)


def untouched(p: ScanInputs, grad_last: Tensor | None) -> ScanGradients:
    """Return the gradients where there is nothing to scan: the last state is the initial one."""
    u, dt, A, B, C = (torch.zeros_like(x) for x in p[:5])
    D, dt_bias, start = (None if x is None else torch.zeros_like(x) for x in (p.D, p.dt_bias, p.initial_state))
    return ScanGradients(u, dt, A, B, C, D, dt_bias, start if start is None or grad_last is None else grad_last.clone())


def total(parts: Tensor, like: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum parts (blocks or spans, b, k, ...) over `axes`, and over directions if `like` is shared by them."""
    direction = 2 - len(axes)
    found = parts.sum(axes)
    found = found if like.shape[direction] > 1 else found.sum(direction, keepdim=True)
    return found.to(like.dtype)
