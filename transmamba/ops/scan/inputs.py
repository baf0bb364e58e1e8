"""The one form in which every backend receives a scan, and how arguments take it.

K scans share a batch of tokens. Along direction k, step t visits token r = orders[k, t] and computes, per channel d,

    dt = softplus(dt[r] + dt_bias)         (softplus and bias only where asked for)
    h  = exp(dt * A) * h + dt * B[r] * u[r]
    y[r] = C[r] . h + D * u[r]

Axes: b batch, k direction, l token, d channel, n state. Where a shape has `1|k`, size 1 is shared by all directions.
Activations (u, dt, B, C, y and their gradients) have one floating dtype; A, D, dt_bias, an `unrounded` y and all states
have the compute dtype: float64 if the activations are float64, otherwise float32. Arithmetic is done in the compute
dtype.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from transmamba.ops.orders import ScanOrder, stack_orders
from transmamba.ops.shapes import check_range, check_shapes

Orders = Sequence[ScanOrder] | Int[Tensor, "direction length"]


class ScanInputs(NamedTuple):
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
    parameters_by_step: bool = False  # dt, B, C are indexed by step t instead of token r (PlainMamba's official form)
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
        """Check shapes, devices and token numbers, because kernels read raw pointers.

        Raises:
            ValueError: see `check_shapes` and `check_range`.
        """
        b, k, l, d, n = self.sizes  # noqa: E741
        tokens, inputs, vectors = (b, k, l, d), (b, k, l, n), (k, d)
        shapes = (tokens, tokens, (k, n, d), inputs, inputs, vectors, vectors, (k, l), (b, l), (b, k, n, d))
        shared = ((b, 1, l, d),) * 2 + ((1, n, d),) + ((b, 1, l, n),) * 2 + ((1, d),) * 2 + shapes[7:]
        check_shapes(self, shapes, shared)
        check_range(self.orders, l, "orders must hold token numbers")


# functions, because the dynamo of older torches cannot read properties of named tuples
def count_directions(inputs: Any) -> int:
    """Count the scans k of a scan or cross scan."""
    p = inputs
    if p.orders is not None:
        return p.orders.shape[0]
    return max(p.u.shape[1], p.dt.shape[1], p.A.shape[0], p.B.shape[1], p.C.shape[1])


def count_sizes(inputs: Any) -> tuple[int, int, int, int, int]:
    """Return the sizes of b, k, l, d, n of a scan or cross scan."""
    batch, _, length, channels = inputs.u.shape
    return batch, count_directions(inputs), length, channels, inputs.A.shape[1]


def output_dtype(inputs: ScanInputs) -> torch.dtype:
    """Return the dtype of y."""
    return inputs.A.dtype if inputs.unrounded else inputs.u.dtype


class ScanGradients(NamedTuple):
    """One entry per floating tensor of `ScanInputs`, with its shape and dtype; None for an input that is None."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    initial_state: Tensor | None


def shared_fields(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    dt_bias: Tensor | None,
    orders: Orders | None,
    mask: Tensor | None,
    softplus: bool,
) -> dict[str, Any]:
    """Return the fields that a scan and a cross scan have in common, from the arguments of the public functions.

    Padded steps get size zero, which leaves the state as it is.
    """
    act, compute = _dtypes(u, dt, B, C, A)
    tokens = u if u.dim() == 4 else u[:, None]
    if mask is not None:
        padded = ~mask[:, None, :, None]
        if dt_bias is not None and not softplus:
            dt, dt_bias = dt + dt_bias[:, None], None
        # softplus(-inf) is zero
        dt = dt.masked_fill(padded, -torch.inf if softplus else 0.0)
        tokens = tokens.masked_fill(padded, 0.0)
    return {
        "u": tokens.to(act),
        "dt": dt.to(act),
        "A": A.to(compute).transpose(-1, -2),
        "B": B.to(act),
        "C": C.to(act),
        "dt_bias": None if dt_bias is None else dt_bias.to(compute),
        "orders": _order_table(orders, tokens.shape[2]),
        "softplus": softplus,
    }


def check_directions(inputs: Any, initial_state: Tensor | None = None, **more: int) -> None:
    """Refuse tensors that are neither shared (size 1) nor have one entry per direction.

    Args:
        inputs: of a scan or a cross scan.
        initial_state: one that cannot be shared.
        more: numbers of entries of other tensors, by their names.

    Raises:
        ValueError: there are such tensors.
    """
    p, k = inputs, count_directions(inputs)
    counts = {"u": p.u.shape[1], "dt": p.dt.shape[1], "A": p.A.shape[0], "B": p.B.shape[1], "C": p.C.shape[1]}
    counts |= {"dt_bias": 1 if p.dt_bias is None else p.dt_bias.shape[0], **more}
    whole = k if initial_state is None else initial_state.shape[1]
    if any([count not in (1, k) for count in counts.values()]) or whole != k:
        counts |= {} if initial_state is None else {"initial_state": whole}
        raise ValueError(f"every input needs 1 or {k} entries on the direction axis, got {counts}")


def _dtypes(*inputs: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype of the activations (u, dt, B, C) and that of the arithmetic."""
    *activations, A = (x.dtype for x in inputs)
    act = activations[0]
    for dtype in activations[1:]:
        act = torch.promote_types(act, dtype)
    compute = torch.float64 if torch.float64 in (act, A) else torch.float32
    return (compute if compute == torch.float64 else act), compute


def _order_table(orders: Orders | None, length: int) -> Tensor | None:
    """Return the tokens visited at each step, (k, l) int64.

    Raises:
        ValueError: orders visit another number of tokens.
    """
    if orders is None:
        return None
    if not isinstance(orders, Tensor):
        return stack_orders(orders, length).index
    if orders.shape[1] != length:
        raise ValueError(f"orders visit {orders.shape[1]} tokens, there are {length}")
    return orders.long()
