"""The selective scan of Mamba: one direction in mamba-ssm's layout, K directions channel-last, and a single step.

    dt = softplus(delta + delta_bias)
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t          y_t = C_t h_t + D u_t          (Eqs. 1-2)

`backends.py` lists the backends that run them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transmamba._typing import typed
from transmamba.ops.dispatch import explain as explain_inputs
from transmamba.ops.dispatch import select_backend
from transmamba.ops.scan import backends as backends  # fills the table
from transmamba.ops.scan.inputs import Orders, ScanInputs, check_directions, shared_fields


@typed
def selective_scan(
    u: Float[Tensor, "batch dim length"],
    delta: Float[Tensor, "batch dim length"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch state length"] | Float[Tensor, "batch group state length"] | Float[Tensor, "dim state"],
    C: Float[Tensor, "batch state length"] | Float[Tensor, "batch group2 state length"] | Float[Tensor, "dim state"],
    D: Float[Tensor, " dim"] | None = None,
    z: Float[Tensor, "batch dim length"] | None = None,
    delta_bias: Float[Tensor, " dim"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Float[Tensor, "batch dim state"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch dim length"] | tuple[Float[Tensor, "batch dim length"], Float[Tensor, "batch dim state"]]:
    """Scan one direction, with the arguments of mamba-ssm's `selective_scan_fn`.

    Arithmetic and states are float32 (float64 if any argument is), the output has the dtype of `u`. B and C vary with
    the token, for all channels or per group of channels, or are constant `(dim, state)`. Every float input and the last
    state carry gradients.

    Args:
        u: input.
        delta: step sizes, before bias and softplus.
        A: decay rates, negative for a stable scan.
        B: input weights.
        C: readout weights.
        D: weight of the direct path.
        z: gate; the output is multiplied by `silu(z)`.
        delta_bias: added to `delta`.
        delta_softplus: pass `delta` through softplus.
        return_last_state: return `(y, h_L)`.
        initial_state: the state before the first step; zero by default.
        backend: "auto" takes the first of the table that accepts; a named one runs or refuses.

    Raises:
        ValueError: groups do not divide the channels, or the backend is unknown.
        NotImplementedError: the named backend refuses.

    Example:
        >>> u, delta, B = torch.ones(1, 2, 5), torch.ones(1, 2, 5), torch.ones(1, 3, 5)
        >>> selective_scan(u, delta, -torch.ones(2, 3), B, B).shape
        torch.Size([1, 2, 5])
    """
    channels, length = u.shape[1:]
    groups = channels if B.dim() == 2 or C.dim() == 2 else max(x.shape[1] if x.dim() == 4 else 1 for x in (B, C))
    if not groups or channels % groups:
        raise ValueError(
            f"the groups of B and C must divide the channels of u: got {groups} groups, {channels} channels"
        )

    def by_token(x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x[None, :, None].expand(u.shape[0], -1, length, -1)
        x = x.transpose(-1, -2) if x.dim() == 4 else x.transpose(-1, -2)[:, None]
        return x.repeat_interleave(groups // x.shape[1], 1) if x.shape[1] not in (1, groups) else x

    def split(x: Tensor, dim: int) -> Tensor:
        # unflatten takes as long as a small scan
        return x.unsqueeze(dim) if groups == 1 else x.unflatten(dim, (groups, channels // groups))

    y, last_state = multi_scan(
        split(u, 1).transpose(-1, -2),
        split(delta, 1).transpose(-1, -2),
        split(A, 0),
        by_token(B),
        by_token(C),
        None if D is None else split(D, 0),
        z=None if z is None else split(z, 1).transpose(-1, -2),
        dt_bias=None if delta_bias is None else split(delta_bias, 0),
        softplus=delta_softplus,
        initial_state=None if initial_state is None else split(initial_state, 1),
        return_last_state=True,
        backend=backend,
    )
    y = y.squeeze(1).transpose(-1, -2) if groups == 1 else y.transpose(-1, -2).flatten(1, 2)
    return (y, last_state.flatten(1, 2)) if return_last_state else y


@typed
def multi_scan(
    u: Float[Tensor, "batch *shared length dim"],
    dt: Float[Tensor, "batch #direction length dim"],
    A: Float[Tensor, "#direction dim state"],
    B: Float[Tensor, "batch #direction length state"],
    C: Float[Tensor, "batch #direction length state"],
    D: Float[Tensor, "#direction dim"] | None = None,
    *,
    z: Float[Tensor, "batch length dim"] | Float[Tensor, "batch #direction length dim"] | None = None,
    dt_bias: Float[Tensor, "#direction dim"] | None = None,
    softplus: bool = False,
    orders: Orders | None = None,
    mask: Bool[Tensor, "batch length"] | None = None,
    seq_idx: Int[Tensor, "batch length"] | None = None,
    initial_state: Float[Tensor, "batch direction dim state"] | None = None,
    merge: bool = False,
    parameters_by_step: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "..."] | tuple[Float[Tensor, "..."], Float[Tensor, "batch direction2 dim state"]]:
    """Scan the same tokens in K directions, channel-last, without a permuted copy of anything.

    Outputs `(batch, direction, length, dim)` stand in natural token order, or summed over the directions
    `(batch, length, dim)` if `merge`. A tensor that all directions share is passed once, with size 1 on the direction
    axis. Half precision is rounded once, after the gate.

    Args:
        u: input, `(batch, length, dim)` for all directions or `(batch, direction, length, dim)`.
        dt: step sizes, before bias and softplus.
        A: decay rates, negative for a stable scan.
        B: input weights.
        C: readout weights.
        D: weight of the direct path.
        z: gate of the tokens; every output is multiplied by `silu(z)`. One per direction only without `merge`.
        dt_bias: added to `dt`.
        softplus: pass `dt` through softplus.
        orders: one scan order per direction (`scan_order`, or rows of token numbers); None visits 0, 1, 2, ...
        mask: True marks a real token; a padded one leaves the state as it is and its output is zero.
        seq_idx: number of the packed sequence each token belongs to; the state restarts where it changes.
        initial_state: states before the first step; zero by default.
        merge: sum the directions.
        parameters_by_step: index dt, B and C by step instead of by token. PlainMamba's released checkpoints were
            trained with it, and it is wrong as a design: a step then uses another token's parameters.
        return_last_state: return `(y, states after the last step)`.
        backend: "auto" takes the first of the table that accepts; a named one runs or refuses.

    Raises:
        ValueError: sizes on the direction axis disagree, orders do not fit the tokens, or the backend is unknown.
        NotImplementedError: the named backend refuses.

    Reference:
        Eqs. 6-8 for K = 2; the cross scans of VMamba and the snakes of PlainMamba for K = 4.
    """
    options = {"dt_bias": dt_bias, "softplus": softplus, "orders": orders, "mask": mask, "seq_idx": seq_idx}
    options |= {"initial_state": initial_state, "merge": merge, "parameters_by_step": parameters_by_step}
    inputs = _inputs(u, dt, A, B, C, D, z, **options)
    y, last_state = select_backend("scan", inputs, backend).run(inputs)
    y = (y if z is None else _gate(y, z)).to(u.dtype)
    y = y if mask is None else y.masked_fill(~mask[:, None, :, None], 0.0)
    y = y[:, 0] if merge else y
    return (y, last_state.transpose(-1, -2)) if return_last_state else y


@typed
def explain(
    u: Float[Tensor, "batch *shared length dim"],
    dt: Float[Tensor, "batch #direction length dim"],
    A: Float[Tensor, "#direction dim state"],
    B: Float[Tensor, "batch #direction length state"],
    C: Float[Tensor, "batch #direction length state"],
    D: Float[Tensor, "#direction dim"] | None = None,
    *,
    z: Float[Tensor, "batch length dim"] | Float[Tensor, "batch #direction length dim"] | None = None,
    dt_bias: Float[Tensor, "#direction dim"] | None = None,
    softplus: bool = False,
    orders: Orders | None = None,
    mask: Bool[Tensor, "batch length"] | None = None,
    seq_idx: Int[Tensor, "batch length"] | None = None,
    initial_state: Float[Tensor, "batch direction dim state"] | None = None,
    merge: bool = False,
    parameters_by_step: bool = False,
) -> str:
    """Name the backend that `multi_scan` takes for these arguments, and why it passes over the faster ones.

    Args:
        u: as in `multi_scan`, like all others.
        dt: step sizes.
        A: decay rates.
        B: input weights.
        C: readout weights.
        D: weight of the direct path.
        z: gate of the tokens.
        dt_bias: added to `dt`.
        softplus: pass `dt` through softplus.
        orders: one scan order per direction.
        mask: True marks a real token.
        seq_idx: number of the packed sequence of each token.
        initial_state: the state before the first step.
        merge: sum the directions.
        parameters_by_step: `dt`, `B`, `C` follow the steps.

    Returns:
        A line per backend, fastest first, down to the one that runs.

    Raises:
        ValueError: as `multi_scan`.

    Example:
        >>> x = torch.ones(1, 1, 5, 2, dtype=torch.float64)
        >>> print(explain(x[:, 0], x, -torch.ones(1, 2, 2), x, x).splitlines()[0])
        cuda: needs a CUDA tensor, u is on cpu
    """
    options = {"dt_bias": dt_bias, "softplus": softplus, "orders": orders, "mask": mask, "seq_idx": seq_idx}
    options |= {"initial_state": initial_state, "merge": merge, "parameters_by_step": parameters_by_step}
    return explain_inputs("scan", _inputs(u, dt, A, B, C, D, z, **options))


def _inputs(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, **options: Any
) -> ScanInputs:
    """Return the arguments of `multi_scan` as backends receive them."""
    seq_idx, initial_state = options["seq_idx"], options["initial_state"]
    shared = {name: options[name] for name in ("dt_bias", "orders", "mask", "softplus")}
    fields = shared_fields(u, dt, A, B, C, **shared)
    compute = fields["A"].dtype
    inputs = ScanInputs(
        **fields,
        D=None if D is None else D.to(compute),
        segments=None if seq_idx is None else seq_idx.long(),
        initial_state=None if initial_state is None else initial_state.to(compute).transpose(-1, -2),
        parameters_by_step=options["parameters_by_step"],
        merge=options["merge"],
        unrounded=z is not None,
    )
    gates = 1 if z is None or z.dim() == 3 else z.shape[1]
    check_directions(inputs, inputs.initial_state, D=1 if D is None else D.shape[0], z=gates)
    if inputs.merge and gates > 1:
        raise ValueError(f"the sum of the directions has one gate, got {gates}: expected z of (batch, length, dim)")
    return inputs


def _gate(y: Tensor, z: Tensor) -> Tensor:
    z = z.to(torch.promote_types(z.dtype, y.dtype))
    return y * F.silu(z if z.dim() == 4 else z[:, None])
