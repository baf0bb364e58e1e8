"""The one form in which every backend receives a scan, and that of the convolution before it.

K scans share a batch of tokens. Along direction k, step t visits token r = orders[k, t] and computes, per channel d,

    dt = softplus(dt[r] + dt_bias)         (softplus and bias only where asked for)
    h  = exp(dt * A) * h + dt * B[r] * u[r]
    y[r] = C[r] . h + D * u[r]

Axes: b batch, k direction, l token, d channel, n state. Where a shape says `1|k`, size 1 is shared by all directions.
Activations (u, dt, B, C, y and their gradients) have one floating dtype; A, D, dt_bias, an `unrounded` y and all states
have the compute dtype: float64 if the activations are float64, otherwise float32. Arithmetic is done in the compute
dtype.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Problem(NamedTuple):
    """Arguments of a scan; strides are free (also zero), states come state-major."""

    u: Tensor  # (b, 1|k, l, d)
    dt: Tensor  # (b, 1|k, l, d), before bias and softplus
    A: Tensor  # (1|k, n, d)
    B: Tensor  # (b, 1|k, l, n)
    C: Tensor  # (b, 1|k, l, n)
    D: Tensor | None = None  # (1|k, d)
    dt_bias: Tensor | None = None  # (1|k, d)
    orders: Tensor | None = None  # (k, l) int64: token visited at each step; None is 0, 1, 2, ...
    segments: Tensor | None = None  # (b, l) int64: the state restarts at zero where the value changes along the order
    initial_state: Tensor | None = None  # (b, k, n, d)
    softplus: bool = False
    step_parameters: bool = False  # dt, B, C are indexed by step t instead of token r (PlainMamba's official form)
    merge: bool = False  # sum the directions: y is (b, 1, l, d)
    unrounded: bool = False  # y in the compute dtype instead of that of u, for a gate to come

    @property
    def directions(self) -> int:
        """Number of scans k."""
        return count_directions(self)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Sizes of b, k, l, d, n."""
        return count_sizes(self)

    def check(self) -> None:
        """Raise ValueError unless every tensor has its shape and all have one home: kernels follow pointers."""
        b, k, l, d, n = self.sizes  # noqa: E741
        tokens, inputs, vectors = (b, k, l, d), (b, k, l, n), (k, d)
        shapes = (tokens, tokens, (k, n, d), inputs, inputs, vectors, vectors, (k, l), (b, l), (b, k, n, d))
        shared = ((b, 1, l, d),) * 2 + ((1, n, d),) + ((b, 1, l, n),) * 2 + ((1, d),) * 2 + shapes[7:]
        _check(self, shapes, shared)


# functions, because the dynamo of older torches cannot read properties of named tuples
def count_directions(problem: Any) -> int:
    """Number of scans k of a scan or cross scan."""
    p = problem
    if p.orders is not None:
        return p.orders.shape[0]
    return max(p.u.shape[1], p.dt.shape[1], p.A.shape[0], p.B.shape[1], p.C.shape[1])


def count_sizes(problem: Any) -> tuple[int, int, int, int, int]:
    """Sizes of b, k, l, d, n of a scan or cross scan."""
    batch, _, length, channels = problem.u.shape
    return batch, count_directions(problem), length, channels, problem.A.shape[1]


def output_dtype(problem: Problem) -> torch.dtype:
    """The dtype of y."""
    return problem.A.dtype if problem.unrounded else problem.u.dtype


class Gradients(NamedTuple):
    """One entry per floating tensor of `Problem`, with its shape and dtype; None for an input that is None."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    initial_state: Tensor | None


class Convolution(NamedTuple):
    """Depthwise causal convolutions of the same tokens, K directions.

    With r = orders[k], direction k computes y[r[t]] = act(bias + sum_j weight[j] x[r[t - width + 1 + j]]) from tokens
    of the same sequence; act is the identity or SiLU. y is (b, k, l, d) in the dtype of x.
    """

    x: Tensor  # (b, l, d)
    weight: Tensor  # (k, d, width), any floating dtype
    bias: Tensor | None = None  # (k, d)
    orders: Tensor | None = None  # (k, l) int64: token visited at each step; None is 0, 1, 2, ...
    inverses: Tensor | None = None  # (k, l) int64: step at which each token is visited
    segments: Tensor | None = (
        None  # (b, l) int64: what came before is forgotten where the value changes along the order
    )
    initial_tokens: Tensor | None = None  # (b, k, width - 1, d) in the dtype of x: visited before, oldest first
    silu: bool = False

    def check(self) -> None:
        """Raise ValueError unless every tensor has its shape and all have one home: kernels follow pointers."""
        (b, l, d), (k, _, width) = self.x.shape, self.weight.shape  # noqa: E741
        shapes = ((b, l, d), (k, d, width), (k, d), (k, l), (k, l), (b, l), (b, k, width - 1, d))
        _check(self, shapes, shapes)


class ConvolutionGradients(NamedTuple):
    """One entry per floating tensor of `Convolution`, with its shape and dtype; None for an input that is None."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial_tokens: Tensor | None


def _check(fields: Any, shapes: Sequence[Shape], shared: Sequence[Shape]) -> None:
    device = fields[0].device
    for name, x, shape, other in zip(fields._fields, fields, shapes, shared, strict=False):
        if not isinstance(x, Tensor):
            continue
        if x.shape != shape and x.shape != other:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: expected {shape}, with a 1 for what directions share")
        if x.device != device:
            raise ValueError(f"{name} is on {x.device}, {fields._fields[0]} on {device}: move both to one device")


def allocate(template: Tensor, directions: int, dtype: torch.dtype | None = None) -> Tensor:
    """An empty (b, directions, l, d) tensor whose memory runs along the axis along which `template`'s does.

    A scan called with (batch, dim, length) tensors thus answers in that layout without a copy.
    """
    batch, _, length, channels = template.shape
    if template.stride(-2) == 1 and template.stride(-1) != 1:
        return template.new_empty(batch, directions, channels, length, dtype=dtype).transpose(-1, -2)
    return template.new_empty(batch, directions, length, channels, dtype=dtype)
