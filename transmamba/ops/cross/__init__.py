"""The cross scan: a context is scanned into states, and queries from elsewhere read them.

    dt = softplus(dt + dt_bias)
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t          y_q = C_q h_s(q)

`backends.py` lists the backends that run it.
"""

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transmamba._typing import typed
from transmamba.ops.cross import backends as backends  # fills the table
from transmamba.ops.cross.inputs import CrossInputs
from transmamba.ops.dispatch import select_backend
from transmamba.ops.plain import without_autocast
from transmamba.ops.scan.inputs import Orders, check_directions, shared_fields


@typed
def cross_scan(
    u: Float[Tensor, "batch length dim"] | Float[Tensor, "batch #direction length dim"],
    dt: Float[Tensor, "batch #direction length dim"],
    A: Float[Tensor, "#direction dim state"],
    B: Float[Tensor, "batch #direction length state"],
    C: Float[Tensor, "batch #direction query state"],
    *,
    reads: Int[Tensor, "batch query"] | None = None,
    dt_bias: Float[Tensor, "#direction dim"] | None = None,
    softplus: bool = False,
    orders: Orders | None = None,
    mask: Bool[Tensor, "batch length"] | None = None,
    merge: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "..."] | tuple[Float[Tensor, "..."], Float[Tensor, "batch direction2 dim state"]]:
    """Scan a context in K directions; queries read its states, and no state of a single token is ever stored.

    Query q reads the last state of each direction, or with `reads` the state just after context token `reads[q]` was
    visited. Outputs are `(batch, direction, query, dim)`, or summed over the directions `(batch, query, dim)` if
    `merge`. A tensor that all directions share is passed once, with size 1 on the direction axis. With `reads[q] = q`
    it is `multi_scan` without a direct path. (The cross scan of VMamba, four orders over an image, is `multi_scan` with
    these orders.)

    Args:
        u: input, `(batch, length, dim)` for all directions or `(batch, direction, length, dim)`.
        dt: step sizes, before bias and softplus.
        A: decay rates, negative for a stable scan.
        B: input weights.
        C: readout weights of the queries.
        reads: the context token that each query reads after, in natural numbering, in any order; None is the end.
        dt_bias: added to `dt`.
        softplus: pass `dt` through softplus.
        orders: one scan order per direction; None visits 0, 1, 2, ...
        mask: True marks a real context token; a padded one leaves the state as it is.
        merge: sum the directions.
        return_last_state: return `(y, states after the last step)`.
        backend: "auto" takes the first of the table that accepts; a named one runs or refuses.

    Raises:
        ValueError: sizes on the direction axis disagree, orders do not fit the context, `reads` names a token that is
            not there, or the backend is unknown.
        NotImplementedError: the named backend refuses.

    Reference:
        Section on cross-Mamba of arXiv 2502.15130: Y = C (M X) with C from another sequence.

    Example:
        >>> u, B = torch.ones(1, 5, 2), torch.ones(1, 1, 5, 3)
        >>> cross_scan(u, u[:, None], -torch.ones(1, 2, 3), B, B[:, :, :4]).shape
        torch.Size([1, 1, 4, 2])
    """
    last_only = reads is None or not u.shape[-2]
    inputs = CrossInputs(
        **shared_fields(
            u, dt, A, B, C[:, :, :0] if last_only else C, dt_bias=dt_bias, orders=orders, mask=mask, softplus=softplus
        ),
        reads=C.new_empty(C.shape[0], 0, dtype=torch.long) if last_only or reads is None else reads.long(),
        merge=merge,
    )
    check_directions(inputs)
    y, last = select_backend("cross scan", inputs, backend).run(inputs)
    last = last.transpose(-1, -2)
    if last_only:
        y = read_state(C.to(inputs.u.dtype), last, merge=merge).to(u.dtype)
    else:
        y = (y[:, 0] if merge else y).to(u.dtype)
    return (y, last) if return_last_state else y


@typed
def read_state(
    C: Float[Tensor, "batch #direction query state"],
    state: Float[Tensor, "batch direction dim state"],
    *,
    merge: bool = False,
) -> Float[Tensor, "..."]:
    """Compute y_q = C_q h of each direction, for queries that all read the same state; in the dtype of the state.

    Outputs are as in `cross_scan`, of which this is the last line.

    Args:
        C: readout weights of the queries.
        state: a state of each direction.
        merge: sum the directions.
    """
    C = C.to(state.dtype).expand(-1, state.shape[1], -1, -1)
    form = "b direction query n, b direction inner n -> b " + ("query inner" if merge else "direction query inner")
    with without_autocast(state.device):
        return einsum(C, state, form)
