"""Decoding: one token through a recurrence or a convolution, state in, state out."""

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from transmamba._typing import typed


@typed
def selective_step(
    state: Float[Tensor, "batch dim state"],
    u: Float[Tensor, "batch dim"],
    dt: Float[Tensor, "batch dim"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch state"] | Float[Tensor, "batch group state"],
    C: Float[Tensor, "batch state"] | Float[Tensor, "batch group state"],
    D: Float[Tensor, " dim"] | None = None,
    z: Float[Tensor, "batch dim"] | None = None,
    dt_bias: Float[Tensor, " dim"] | None = None,
    dt_softplus: bool = False,
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim state"]]:
    """One step of `selective_scan`: the output for one token and the state after it.

    Arithmetic has the dtype of the state; the output has that of `u`. The given state is not written to.

    Args:
        state: the state before the token.
        u: input.
        dt: step sizes, before bias and softplus.
        A: decay rates, negative for a stable scan.
        B: input weights, for all channels or per group of channels.
        C: readout weights, likewise.
        D: weight of the direct path.
        z: gate; the output is multiplied by `silu(z)`.
        dt_bias: added to `dt`.
        dt_softplus: pass `dt` through softplus.

    Raises:
        ValueError: groups do not divide the channels.

    Example:
        >>> token, B = torch.ones(1, 2), torch.ones(1, 3)
        >>> y, state = selective_step(torch.zeros(1, 2, 3), token, token, -torch.ones(2, 3), B, B)
        >>> y
        tensor([[3., 3.]])
    """
    compute, token = state.dtype, u.to(state.dtype)
    dt = dt.to(compute) if dt_bias is None else dt.to(compute) + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    B, C = (_per_channel(x.to(compute), state.shape[1]) for x in (B, C))
    state = torch.exp(dt[..., None] * A) * state + (dt * token)[..., None] * B
    y = (state * C).sum(-1)
    y = y if D is None else y + D * token
    y = y if z is None else y * F.silu(z.to(compute))
    return y.to(u.dtype), state


def _per_channel(x: Tensor, channels: int) -> Tensor:
    """B or C for every channel: (batch, 1 | dim, state)."""
    if x.dim() == 2 or x.shape[1] == 1:
        return x[:, None] if x.dim() == 2 else x
    if not x.shape[1] or channels % x.shape[1]:
        raise ValueError(
            f"the groups of B and C must divide the channels: got {x.shape[1]} groups, {channels} channels"
        )
    return x.repeat_interleave(channels // x.shape[1], 1)


@typed
def conv_step(
    state: Float[Tensor, "batch dim width"],
    x: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "dim width"],
    bias: Float[Tensor, " dim"] | None = None,
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim width"]]:
    """One step of `causal_conv1d`: the output for one token and the last `width` tokens, newest last.

    Example:
        >>> conv_step(torch.tensor([[[5.0, 6.0]]]), torch.tensor([[7.0]]), torch.tensor([[10.0, 1.0]]))
        (tensor([[67.]]), tensor([[[6., 7.]]]))
    """
    state = torch.cat([state[..., 1:], x[..., None]], -1)
    y = einsum(state, weight.to(state.dtype), "batch dim width, dim width -> batch dim")
    return (y if bias is None else y + bias).to(x.dtype), state
