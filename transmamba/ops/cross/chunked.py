"""The cross scan in plain torch: chunks as in `chunked`; the queries due in a chunk read it while it is there."""

from collections.abc import Iterator

import torch
from torch import Tensor

from transmamba.ops.cross.inputs import CrossGradients, CrossInputs
from transmamba.ops.scan.chunked import CHUNK as CHUNK
from transmamba.ops.scan.chunked import Sums, Walk, through_inputs
from transmamba.ops.shapes import allocate

Places = tuple[Tensor, Tensor, Tensor, Tensor]  # step within the chunk, batch entry, direction, query


def unsupported_reasons(inputs: CrossInputs) -> list[str]:
    """Return no reasons, because plain torch accepts everything."""
    return []


class _Queue:
    """Queries sorted by the step they read."""

    def __init__(self, inputs: CrossInputs, walk: Walk) -> None:
        steps = inputs.steps
        self.shape = steps.shape
        self.steps, self.order = steps.flatten().sort(stable=True)
        self.chunks = walk.chunks
        borders = torch.tensor([start for start, _ in walk.chunks] + [inputs.sizes[2]], device=steps.device)
        self.borders = torch.searchsorted(self.steps, borders).tolist()

    def due(self, i: int) -> Iterator[Places]:
        """Yield the queries that read in chunk `i`, a few at a time: they read no more than the states of a chunk."""
        batch, directions, queries = self.shape
        for at in range(self.borders[i], self.borders[i + 1], max(1, CHUNK * batch * directions)):
            part = slice(at, min(at + CHUNK * batch * directions, self.borders[i + 1]))
            scan, query = self.order[part] // queries, self.order[part] % queries
            yield self.steps[part] - self.chunks[i][0], scan // directions, scan % directions, query


def forward(inputs: CrossInputs, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs, last states and, if `save`, the states before each chunk."""
    p, walk, (batch, directions, _, channels, state) = inputs, Walk(inputs.context), inputs.sizes
    queue, C = _Queue(p, walk), p.C.to(p.A.dtype).expand(-1, directions, -1, -1)
    h = p.A.new_zeros(batch, directions, state, channels)
    y = p.A.new_zeros(batch, directions, C.shape[2], channels)
    saved = p.A.new_empty((batch, directions, len(walk.chunks), state, channels) if save else (0,))
    decay, states = walk.buffers()
    for i, (start, stop) in enumerate(walk.chunks):
        if save:
            saved[:, :, i] = h
        chunk = walk.steps(start, stop, h, decay, states)
        h = chunk.states[-1].clone()
        for t, b, k, query in queue.due(i):
            y[b, k, query] = (C[b, k, query, None] @ chunk.states[t + 1, b, k]).squeeze(-2)
    y = y.sum(1, keepdim=True) if p.merge else y
    return y.to(p.u.dtype), h, saved


def backward(inputs: CrossInputs, saved: Tensor, grad_y: Tensor | None, grad_last: Tensor | None) -> CrossGradients:
    """Return the gradients of every floating input, from the states before each chunk."""
    p, walk, (batch, directions, _, channels, state) = inputs, Walk(inputs.context), inputs.sizes
    dtype, queue, C = p.A.dtype, _Queue(p, walk), p.C.to(p.A.dtype).expand(-1, directions, -1, -1)
    du, ddt = (allocate(x.to(dtype), x.shape[1]).zero_() for x in (p.u, p.dt))
    dB, dC = p.A.new_zeros(p.B.shape), p.A.new_zeros(C.shape)
    sums = Sums(ddt, p.A.new_zeros(directions, state, channels), dB, p.A.new_zeros(directions, channels))
    grad = None if grad_y is None else grad_y.expand(-1, directions, -1, -1)
    carry = p.A.new_zeros(batch, directions, state, channels) if grad_last is None else grad_last
    decay, states = walk.buffers()
    adjoint = torch.empty_like(states[1:])
    for i in range(len(walk.chunks) - 1, -1, -1):
        start, stop = walk.chunks[i]
        chunk = walk.steps(start, stop, saved[:, :, i], decay, states)
        q = adjoint[: stop - start].zero_()
        q[-1] = carry
        for t, b, k, query in () if grad is None else queue.due(i):
            assert grad is not None
            g = grad[b, k, query].to(dtype)
            dC[b, k, query] = (chunk.states[t + 1, b, k] @ g[..., None]).squeeze(-1)
            q.index_put_((t, b, k), C[b, k, query][..., None] * g[:, None], accumulate=True)
        for step in range(len(q) - 2, -1, -1):
            q[step].addcmul_(chunk.decay[step + 1], q[step + 1])
        carry = chunk.decay[0] * q[0]
        walk.add(du, through_inputs(walk, chunk, q, sums, start, stop), walk.tokens(start, stop), start, stop)
    return CrossGradients(
        du.to(p.u.dtype),
        ddt.to(p.dt.dtype),
        sums.A.sum_to_size(p.A.shape),
        dB.to(p.B.dtype),
        dC.sum_to_size(p.C.shape).to(p.C.dtype),
        None if p.dt_bias is None else sums.dt_bias.sum_to_size(p.dt_bias.shape),
    )
