"""The form in which every backend receives a cross scan: a context writes the states, queries read them.

Along direction k, step t visits context token r = orders[k, t] and computes, per channel d,

    dt = softplus(dt[r] + dt_bias)         (softplus and bias only where asked for)
    h  = exp(dt * A) * h + dt * B[r] * u[r]
    y[q] = C[q] . h                        for every query q with reads[q] = r

Axes: b batch, k direction, l context token, q query, d channel, n state. Sizes, dtypes and strides are as in
`ScanInputs`; y and C have one row per query.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from transmamba.ops.scan.inputs import ScanInputs, count_directions, count_sizes
from transmamba.ops.shapes import check_range, check_shapes


class CrossInputs(NamedTuple):
    """Arguments of a cross scan."""

    u: Tensor  # (b, 1|k, l, d)
    dt: Tensor  # (b, 1|k, l, d), before bias and softplus
    A: Tensor  # (1|k, n, d)
    B: Tensor  # (b, 1|k, l, n)
    C: Tensor  # (b, 1|k, q, n)
    dt_bias: Tensor | None  # (1|k, d)
    orders: Tensor | None  # (k, l) int64: token visited at each step; None is 0, 1, 2, ...
    reads: Tensor  # (b, q) int64: context token after whose step a query reads
    softplus: bool = False
    merge: bool = False  # sum the directions: y is (b, 1, q, d)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Sizes of b, k, l, d, n."""
        return count_sizes(self)

    @property
    def directions(self) -> int:
        """Number of scans k."""
        return count_directions(self)

    @property
    def context(self) -> ScanInputs:
        """The scan over the context without its outputs; B stands in for C, which nothing reads."""
        p = self
        idle = p.B.expand(-1, p.directions, -1, -1)
        return ScanInputs(p.u, p.dt, p.A, p.B, idle, dt_bias=p.dt_bias, orders=p.orders, softplus=p.softplus)

    def check(self) -> None:
        """Check shapes, devices and token numbers, because kernels read raw pointers.

        Raises:
            ValueError: see `check_shapes` and `check_range`.
        """
        self.context.check()
        (b, k, _, _, n), queries = self.sizes, self.C.shape[2]
        readers = _Readers(self.u, self.C, self.reads)
        shapes = (self.u.shape, (b, k, queries, n), (b, queries))
        check_shapes(readers, shapes, (self.u.shape, (b, 1, queries, n), (b, queries)))
        check_range(self.reads, self.u.shape[2], "reads must hold context tokens")

    @property
    def steps(self) -> Tensor:
        """The step after which each query reads, (b, k, q)."""
        return steps_of(self)


def steps_of(inputs: CrossInputs) -> Tensor:
    """Return the step after which each query reads, (b, k, q)."""
    if inputs.orders is None:
        return inputs.reads[:, None].expand(-1, count_directions(inputs), -1)
    return inputs.orders.argsort(-1)[:, inputs.reads].transpose(0, 1)


class _Readers(NamedTuple):
    u: Tensor
    C: Tensor
    reads: Tensor


class CrossGradients(NamedTuple):
    """One entry per floating tensor of `CrossInputs`, with its shape and dtype; None for an input that is None."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    dt_bias: Tensor | None


def queue_of(inputs: CrossInputs) -> tuple[Tensor, Tensor]:
    """Sort query numbers in the order in which a direction meets them, (b, k, q), and count those before each step.

    The second, (b, k, l + 1), gives the queries due after step t: queue[first[t] : first[t + 1]].
    """
    batch, directions, length, _, _ = inputs.sizes
    steps, queue = inputs.steps.sort(dim=-1, stable=True)
    borders = torch.arange(length + 1, device=steps.device).expand(batch, directions, -1).contiguous()
    return queue.contiguous(), torch.searchsorted(steps.contiguous(), borders)
