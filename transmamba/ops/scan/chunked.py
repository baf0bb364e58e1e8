"""Plain torch on any device: time steps one by one, everything else a whole chunk at a time.

Only the states at chunk borders are kept; the backward recomputes a chunk from its border. Tensors of one chunk are
time-first, (t, b, 1|k, ...), so that a step is one contiguous block and one fused multiply-add.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.ops.scan.inputs import ScanGradients, ScanInputs, output_dtype
from transmamba.ops.shapes import allocate

CHUNK = 16


def unsupported_reasons(inputs: ScanInputs) -> list[str]:
    """Return no reasons, because plain torch accepts everything."""
    return []


class Steps(NamedTuple):
    """The inputs of one chunk in scan order and the compute dtype."""

    u: Tensor  # (t, b, 1|k, d)
    raw: Tensor  # (t, b, 1|k, d), dt before softplus
    dt: Tensor
    B: Tensor  # (t, b, 1|k, n)
    C: Tensor
    decay: Tensor  # (t, b, 1|k, n, d)
    states: Tensor  # (t + 1, b, k, n, d), the first one before the chunk


class Walk:
    """Reads and writes (b, 1|k, l, c) tensors one chunk of steps at a time."""

    def __init__(self, inputs: ScanInputs) -> None:
        self.p = inputs
        self.chunks = [(s, min(s + CHUNK, inputs.sizes[2])) for s in range(0, inputs.sizes[2], CHUNK)]

    def tokens(self, start: int, stop: int) -> Tensor | None:
        """Return the tokens visited by each direction, (k, t); None where they are the steps."""
        return None if self.p.orders is None else self.p.orders[:, start:stop]

    def parameter_tokens(self, start: int, stop: int) -> Tensor | None:
        """Return the tokens of dt, B and C in the same form."""
        return None if self.p.parameters_by_step else self.tokens(start, stop)

    def take(self, x: Tensor, tokens: Tensor | None, start: int, stop: int) -> Tensor:
        """Return the rows of a chunk, (t, b, 1|k, c), in the compute dtype."""
        if tokens is None:
            part = x[:, :, start:stop]
        else:
            rows = torch.arange(tokens.shape[0], device=x.device) if x.shape[1] > 1 else tokens.new_zeros(1)
            part = x[:, rows[:, None], tokens]
        return part.to(self.p.A.dtype).permute(2, 0, 1, 3)

    def add(self, target: Tensor, value: Tensor, tokens: Tensor | None, start: int, stop: int) -> None:
        """Add `value` (t, b, 1|k, c) to the rows of a chunk, summed where directions share them."""
        value = value.permute(1, 2, 0, 3)
        if tokens is None:
            target[:, :, start:stop] += value.sum(1, keepdim=True) if target.shape[1] == 1 else value
            return
        for k, visited in enumerate(tokens):
            target[:, k if target.shape[1] > 1 else 0, visited] += value[:, k if value.shape[1] > 1 else 0]

    def steps(self, start: int, stop: int, state: Tensor, decay: Tensor, states: Tensor) -> Steps:
        """Load a chunk and run its recurrence inside the buffers `decay` and `states`."""
        p, count = self.p, stop - start
        u = self.take(p.u, self.tokens(start, stop), start, stop)
        own = self.parameter_tokens(start, stop)
        raw, B, C = (self.take(x, own, start, stop) for x in (p.dt, p.B, p.C))
        raw = raw if p.dt_bias is None else raw + p.dt_bias
        dt = F.softplus(raw) if p.softplus else raw
        decay, states = decay[:count], states[: count + 1]
        # where dt, u and B are shared by directions, these outputs have more of them than any factor
        torch.mul(dt[:, :, :, None].expand(-1, -1, decay.shape[2], -1, -1), p.A, out=decay).exp_()
        if p.segments is not None:
            decay *= self.keep(start, stop)
        states[0] = state
        torch.mul((dt * u)[:, :, :, None].expand(-1, -1, states.shape[2], -1, -1), B[..., None], out=states[1:])
        for t in range(count):
            states[t + 1].addcmul_(decay[t], states[t])
        return Steps(u, raw, dt, B, C, decay, states)

    def keep(self, start: int, stop: int) -> Tensor:
        """Zero where a segment begins (step 0 excepted, which keeps the initial state); (t, b, k, 1, 1)."""
        p, first = self.p, max(start - 1, 0)
        visit = self.tokens(first, stop)
        visit = torch.arange(first, stop, device=p.u.device)[None] if visit is None else visit
        seen = p.segments[:, visit]  # type: ignore[index]
        same = seen[..., 1:] == seen[..., :-1]
        same = F.pad(same, (1, 0), value=True) if start == 0 else same
        return same.permute(2, 0, 1)[..., None, None]

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Allocate room for the decays and states of one chunk; decays shared by all directions are held once."""
        p, (batch, directions, _, channels, state) = self.p, self.p.sizes
        ordered = p.orders is not None and not p.parameters_by_step
        own = directions if ordered or p.segments is not None else max(p.dt.shape[1], p.A.shape[0])
        decay = p.A.new_empty(CHUNK, batch, own, state, channels)
        return decay, p.A.new_empty(CHUNK + 1, batch, directions, state, channels)


def forward(inputs: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs, last states and, if `save`, the states before each chunk."""
    p, walk, (batch, directions, _, channels, state) = inputs, Walk(inputs), inputs.sizes
    h = p.A.new_zeros(batch, directions, state, channels) if p.initial_state is None else p.initial_state.clone()
    y = allocate(p.u.to(p.A.dtype), 1 if p.merge else directions).zero_()
    saved = p.A.new_empty((batch, directions, len(walk.chunks), state, channels) if save else (0,))
    decay, states = walk.buffers()
    for i, (start, stop) in enumerate(walk.chunks):
        if save:
            saved[:, :, i] = h
        chunk = walk.steps(start, stop, h, decay, states)
        h = chunk.states[-1].clone()
        out = (chunk.C[..., None, :] @ chunk.states[1:]).squeeze(-2)
        out = out if p.D is None else out + p.D * chunk.u
        walk.add(y, out, walk.tokens(start, stop), start, stop)
    return y.to(output_dtype(p)), h, saved


def backward(inputs: ScanInputs, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> ScanGradients:
    """Return the gradients of every floating input, from the states before each chunk."""
    p, walk, (batch, directions, _, channels, state) = inputs, Walk(inputs), inputs.sizes
    dtype = p.A.dtype
    du, ddt = (allocate(x.to(dtype), x.shape[1]).zero_() for x in (p.u, p.dt))
    dA = p.A.new_zeros(directions, state, channels)
    dB, dC = (x.new_zeros(x.shape, dtype=dtype) for x in (p.B, p.C))
    dD, dbias = (p.A.new_zeros(directions, channels) for _ in range(2))
    carry = p.A.new_zeros(batch, directions, state, channels) if grad_last is None else grad_last.clone()
    decay, states = walk.buffers()
    adjoint = torch.empty_like(states[1:])
    for i in range(len(walk.chunks) - 1, -1, -1):
        start, stop = walk.chunks[i]
        chunk = walk.steps(start, stop, saved[:, :, i], decay, states)
        tokens, own = walk.tokens(start, stop), walk.parameter_tokens(start, stop)
        g = walk.take(grad_y, tokens, start, stop)
        q, carry = _adjoint(chunk, g, carry, adjoint)
        walk.add(dC, (chunk.states[1:] @ g[..., None]).squeeze(-1), own, start, stop)
        dD += (g * chunk.u).sum((0, 1))
        dx = through_inputs(walk, chunk, q, Sums(ddt, dA, dB, dbias), start, stop)
        walk.add(du, dx if p.D is None else dx + g * p.D, tokens, start, stop)
    return ScanGradients(
        du.to(p.u.dtype),
        ddt.to(p.dt.dtype),
        dA.sum_to_size(p.A.shape),
        dB.to(p.B.dtype),
        dC.to(p.C.dtype),
        None if p.D is None else dD.sum_to_size(p.D.shape),
        None if p.dt_bias is None else dbias.sum_to_size(p.dt_bias.shape),
        None if p.initial_state is None else carry,
    )


def _adjoint(chunk: Steps, g: Tensor, carry: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Compute dL/dh at every step of the chunk, written into `buffer`, and dL/dh just before it."""
    q = buffer[: len(chunk.u)]
    torch.mul(g[:, :, :, None].expand(-1, -1, q.shape[2], -1, -1), chunk.C[..., None], out=q)
    q[-1] += carry
    for t in range(len(q) - 2, -1, -1):
        q[t].addcmul_(chunk.decay[t + 1], q[t + 1])
    return q, chunk.decay[0] * q[0]


class Sums(NamedTuple):
    """Gradients that chunks are added to."""

    dt: Tensor  # (b, 1|k, l, d)
    A: Tensor  # (k, n, d)
    B: Tensor  # (b, 1|k, l, n)
    dt_bias: Tensor  # (k, d)


def through_inputs(walk: Walk, chunk: Steps, q: Tensor, sums: Sums, start: int, stop: int) -> Tensor:
    """Add the contributions of the states' adjoints `q` to `sums`, and return those to u; `q` is overwritten."""
    p, own = walk.p, walk.parameter_tokens(start, stop)
    dx = (chunk.B[..., None, :] @ q).squeeze(-2)
    walk.add(sums.B, (q @ (chunk.dt * chunk.u)[..., None]).squeeze(-1), own, start, stop)
    exponent = q.mul_(chunk.decay).mul_(chunk.states[:-1])
    draw = (exponent * p.A).sum(-2) + dx * chunk.u
    sums.A.add_(exponent.mul_(chunk.dt[:, :, :, None]).sum((0, 1)))
    draw = draw * torch.sigmoid(chunk.raw) if p.softplus else draw
    walk.add(sums.dt, draw, own, start, stop)
    sums.dt_bias.add_(draw.sum((0, 1)))
    return dx * chunk.dt
