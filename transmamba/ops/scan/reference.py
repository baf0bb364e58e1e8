"""The recurrence, written as it is defined. Every other backend is tested against this file."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.ops.plain import exporting_to_onnx, walk
from transmamba.ops.scan.inputs import ScanInputs, count_sizes


def unsupported_reasons(inputs: ScanInputs) -> list[str]:
    """Return no reasons, because the reference accepts everything."""
    return []


def run(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Return the outputs (b, 1|k, l, d) and last states (b, k, n, d); plain autograd, linear in the length."""
    p, (batch, directions, _, channels, state) = inputs, count_sizes(inputs)
    u, dt, B, C = (x.to(p.A.dtype).expand(-1, directions, -1, -1) for x in (p.u, p.dt, p.B, p.C))
    u_scan, parameters = _along(u, p.orders), (dt, B, C)
    dt, B, C = parameters if p.parameters_by_step else (_along(x, p.orders) for x in parameters)
    dt = dt if p.dt_bias is None else dt + p.dt_bias[:, None]
    dt = F.softplus(dt) if p.softplus else dt

    h = u.new_zeros(batch, directions, state, channels) if p.initial_state is None else p.initial_state
    A = p.A.detach().expand(directions, -1, -1).contiguous() if exporting_to_onnx() else p.A

    def step(h: Tensor, now: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        u_t, dt_t, B_t, C_t, *keep_t = now
        h = h * keep_t[0][..., None, None] if keep_t else h
        h = torch.exp(dt_t[:, :, None] * A) * h + (dt_t * u_t)[:, :, None] * B_t[..., None]
        return h, (C_t[..., None] * h).sum(-2)

    h, y_scan = walk(step, h, (u_scan, dt, B, C, *_keep(p.segments, p.orders, directions)), dim=2)
    y = (
        torch.zeros_like(u_scan)
        if y_scan is None
        else _along(y_scan, None if p.orders is None else p.orders.argsort(-1))
    )
    y = y if p.D is None else y + p.D[:, None] * u
    y = y.sum(1, keepdim=True) if p.merge else y
    return y if p.unrounded else y.to(p.u.dtype), h


def _along(x: Tensor, visit: Tensor | None) -> Tensor:
    return x if visit is None else x.gather(2, visit[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[-1]))


def _keep(segments: Tensor | None, visit: Tensor | None, directions: int) -> list[Tensor]:
    """Return (b, k, l): zero at the first step of a segment, one elsewhere; step 0 keeps the initial state."""
    if segments is None:
        return []
    seen = segments[:, None].expand(-1, directions, -1) if visit is None else segments[:, visit]
    same = seen[..., 1:] == seen[..., :-1]
    return [F.pad(same, (1, 0), value=True)]
