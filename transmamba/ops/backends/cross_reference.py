"""The cross scan, written as it is defined: all states are kept, and each query takes the one it reads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.ops.backends.cross_problem import CrossProblem, steps_of
from transmamba.ops.backends.problem import count_sizes


def refuse(problem: CrossProblem) -> list[str]:
    """The reference accepts everything."""
    return []


def run(problem: CrossProblem) -> tuple[Tensor, Tensor]:
    """Outputs (b, 1|k, q, d) and last states (b, k, n, d); plain autograd, linear in the length."""
    p, (batch, directions, length, channels, state) = problem, count_sizes(problem)
    u, dt, B, C = (x.to(p.A.dtype).expand(-1, directions, -1, -1) for x in (p.u, p.dt, p.B, p.C))
    visit = torch.arange(length, device=u.device).expand(directions, -1) if p.orders is None else p.orders
    u, dt, B = (x.gather(2, visit[None, :, :, None].expand(batch, -1, -1, x.shape[-1])) for x in (u, dt, B))
    dt = dt if p.dt_bias is None else dt + p.dt_bias[:, None]
    dt = F.softplus(dt) if p.softplus else dt

    h = u.new_zeros(batch, directions, state, channels)
    states = []
    for u_t, dt_t, B_t in zip(*(x.unbind(2) for x in (u, dt, B)), strict=True):
        h = torch.exp(dt_t[:, :, None] * p.A) * h + (dt_t * u_t)[:, :, None] * B_t[..., None]
        states.append(h)
    if not length:
        return p.u.new_zeros(batch, 1 if p.merge else directions, 0, channels), h
    chosen = steps_of(p)[..., None, None].expand(-1, -1, -1, state, channels)
    y = (C[..., None] * torch.stack(states, 2).gather(2, chosen)).sum(-2)
    y = y.sum(1, keepdim=True) if p.merge else y
    return y.to(p.u.dtype), h
