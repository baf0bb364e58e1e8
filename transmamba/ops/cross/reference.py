"""The cross scan, written as it is defined: all states are kept, and each query takes the one it reads."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.ops.cross.inputs import CrossInputs, steps_of
from transmamba.ops.plain import exporting_to_onnx, walk
from transmamba.ops.scan.inputs import count_sizes


def unsupported_reasons(inputs: CrossInputs) -> list[str]:
    """Return no reasons, because the reference accepts everything."""
    return []


def run(inputs: CrossInputs) -> tuple[Tensor, Tensor]:
    """Return the outputs (b, 1|k, q, d) and last states (b, k, n, d); plain autograd, linear in the length."""
    p, (batch, directions, length, channels, state) = inputs, count_sizes(inputs)
    u, dt, B, C = (x.to(p.A.dtype).expand(-1, directions, -1, -1) for x in (p.u, p.dt, p.B, p.C))
    visit = torch.arange(length, device=u.device).expand(directions, -1) if p.orders is None else p.orders
    u, dt, B = (x.gather(2, visit[None, :, :, None].expand(batch, -1, -1, x.shape[-1])) for x in (u, dt, B))
    dt = dt if p.dt_bias is None else dt + p.dt_bias[:, None]
    dt = F.softplus(dt) if p.softplus else dt

    h = u.new_zeros(batch, directions, state, channels)
    A = p.A.detach().expand(directions, -1, -1).contiguous() if exporting_to_onnx() else p.A

    def step(h: Tensor, now: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        u_t, dt_t, B_t = now
        h = torch.exp(dt_t[:, :, None] * A) * h + (dt_t * u_t)[:, :, None] * B_t[..., None]
        return h, h.clone()

    h, states = walk(step, h, (u, dt, B), dim=2)
    if states is None:
        return p.u.new_zeros(batch, 1 if p.merge else directions, 0, channels), h
    chosen = steps_of(p)[..., None, None].expand(-1, -1, -1, state, channels)
    y = (C[..., None] * states.gather(2, chosen)).sum(-2)
    y = y.sum(1, keepdim=True) if p.merge else y
    return y.to(p.u.dtype), h
