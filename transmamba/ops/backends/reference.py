"""The recurrence, written as it is defined. Every other backend is tested against this file."""

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.ops.backends.problem import Problem, count_sizes


def refuse(problem: Problem) -> list[str]:
    """The reference accepts everything."""
    return []


def run(problem: Problem) -> tuple[Tensor, Tensor]:
    """Outputs (b, 1|k, l, d) and last states (b, k, n, d); plain autograd, linear in the length."""
    p, (batch, directions, length, channels, state) = problem, count_sizes(problem)
    u, dt, B, C = (x.to(p.A.dtype).expand(-1, directions, -1, -1) for x in (p.u, p.dt, p.B, p.C))
    visit = torch.arange(length, device=u.device).expand(directions, -1) if p.orders is None else p.orders
    u_scan, parameters = _along(u, visit), (dt, B, C)
    dt, B, C = parameters if p.step_parameters else (_along(x, visit) for x in parameters)
    dt = dt if p.dt_bias is None else dt + p.dt_bias[:, None]
    dt = F.softplus(dt) if p.softplus else dt

    h = u.new_zeros(batch, directions, state, channels) if p.initial_state is None else p.initial_state
    keep = _keep(p.segments, visit)
    outputs = []
    # unbind, not indexing: the backward of x[:, :, t] fills a whole zero tensor per step
    for t, (u_t, dt_t, B_t, C_t) in enumerate(zip(*(x.unbind(2) for x in (u_scan, dt, B, C)), strict=True)):
        h = h if keep is None else h * keep[:, :, t, None, None]
        h = torch.exp(dt_t[:, :, None] * p.A) * h + (dt_t * u_t)[:, :, None] * B_t[..., None]
        outputs.append((C_t[..., None] * h).sum(-2))
    y_scan = torch.stack(outputs, 2) if outputs else torch.zeros_like(u_scan)
    y = _along(y_scan, visit.argsort(-1))
    y = y if p.D is None else y + p.D[:, None] * u
    y = y.sum(1, keepdim=True) if p.merge else y
    return y if p.unrounded else y.to(p.u.dtype), h


def _along(x: Tensor, visit: Tensor) -> Tensor:
    return x.gather(2, visit[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[-1]))


def _keep(segments: Tensor | None, visit: Tensor) -> Tensor | None:
    """(b, k, l): zero at the first step of a segment, one elsewhere; step 0 keeps the initial state."""
    if segments is None:
        return None
    seen = segments[:, visit]
    same = seen[..., 1:] == seen[..., :-1]
    return F.pad(same, (1, 0), value=True)
