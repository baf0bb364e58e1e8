"""Decoding: one token through a recurrence or a convolution, state in, state out."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from transmamba._typing import typed
from transmamba.ops.plain import without_autocast


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
    """Run one step of `selective_scan`: the output for one token and the state after it.

    Arithmetic is float32 (float64 if the state is); the output has the dtype of `u`, the state after the token that of
    the one before, each rounded once. The given state is not written to.

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
    compute = torch.promote_types(state.dtype, torch.float32)
    token, A = u.to(compute), A.to(compute)
    dt = dt.to(compute) if dt_bias is None else dt.to(compute) + dt_bias.to(compute)
    dt = F.softplus(dt) if dt_softplus else dt
    B, C = (_per_channel(x.to(compute), state.shape[1]) for x in (B, C))
    after = torch.exp(dt[..., None] * A) * state.to(compute) + (dt * token)[..., None] * B
    y = (after * C).sum(-1)
    y = y if D is None else y + D.to(compute) * token
    y = y if z is None else y * F.silu(z.to(compute))
    return y.to(u.dtype), after.to(state.dtype)


def _per_channel(x: Tensor, channels: int) -> Tensor:
    """Return B or C for every channel: (batch, 1 | dim, state)."""
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
    *,
    activation: Literal["silu"] | None = None,
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim width"]]:
    """Run one step of `causal_conv1d`: the output for one token and the last `width` tokens, newest last.

    Arithmetic is float32 (float64 if a token is); the output has the dtype of `x`, rounded once.

    Args:
        state: the last `width` tokens before `x`, newest last.
        x: the token.
        weight: one kernel per channel, oldest token first.
        bias: one per channel.
        activation: "silu" is applied before the output is rounded.

    Example:
        >>> conv_step(torch.tensor([[[5.0, 6.0]]]), torch.tensor([[7.0]]), torch.tensor([[10.0, 1.0]]))
        (tensor([[67.]]), tensor([[[6., 7.]]]))
    """
    state = torch.cat([state[..., 1:], x[..., None]], -1)
    compute = torch.promote_types(state.dtype, torch.float32)
    with without_autocast(x.device):
        y = einsum(state.to(compute), weight.to(compute), "batch dim width, dim width -> batch dim")
    y = y if bias is None else y + bias.to(compute)
    return (F.silu(y) if activation else y).to(x.dtype), state
