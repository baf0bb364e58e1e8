"""The Mamba-2 mixer: one projection for everything, heads with scalar decay, gated norm."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, scaled_size, typed
from transmamba.nn.cache import MixerCache
from transmamba.nn.directions import check_one_direction, orders_of, visit, with_sum
from transmamba.nn.heads import HeadSSM
from transmamba.nn.norm import GatedRMSNorm, SiluGate
from transmamba.ops import ScanOrder, causal_conv1d, conv_step, permute_tokens


class Mamba2Branch(nn.Module):
    """The own part of a further direction of a mixer: a causal convolution and the heads."""

    def __init__(self, conv1d: nn.Conv1d, ssm: HeadSSM) -> None:
        super().__init__()
        self.conv1d, self.ssm = conv1d, ssm


class Mamba2Mixer(nn.Module):
    """in_proj -> causal convolution and SiLU over x, B, C -> scan by heads -> gated norm -> out_proj.

    Several directions share both projections, the gate and the norm; each has a convolution and heads of its own, and
    its output is normed by itself before the sum, so that it does not depend on the other directions.

    Args:
        d_model: width of the tokens.
        d_state: states per channel.
        head_dim: channels per head.
        d_conv: width of the convolution.
        expand: inner width as a multiple of `d_model`, rounded down.
        bias: bias of the projections.
        conv_bias: bias of the convolution.
        d_ssm: channels that the heads fill; the rest of the inner width is a gated MLP beside them. All by default.
        normed: the gate comes with a norm; without, it is the product with silu(z) alone.
        ssm: the heads, if `d_state` and `head_dim` do not say enough about them; further directions have heads of the
            same sizes with a start of their own.
        directions: number of scan orders.

    Raises:
        ValueError: `head_dim` does not divide `d_ssm`, the heads do not fill it, or it is beyond the inner width.

    Reference:
        Mamba-2, arXiv 2405.21060, section 7; parameter names as in mamba_ssm, but for the prefix `ssm`.

    Example:
        >>> Mamba2Mixer(8, 5, head_dim=4)(torch.zeros(2, 7, 8)).shape
        torch.Size([2, 7, 8])
    """

    @typed
    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        *,
        head_dim: int = 64,
        d_conv: int = 4,
        expand: int | float = 2,
        bias: bool = False,
        conv_bias: bool = True,
        d_ssm: int | None = None,
        normed: bool = True,
        ssm: HeadSSM | None = None,
        directions: int = 1,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, d_state=d_state, head_dim=head_dim, d_conv=d_conv, d_ssm=d_ssm)
        check_sizes(directions=directions)
        d_inner = scaled_size(d_model, expand, "expand")
        filled = d_inner if d_ssm is None else d_ssm
        if filled > d_inner:
            raise ValueError(f"d_ssm={d_ssm} is more than the inner width {d_inner}")
        self.ssm = HeadSSM(filled // head_dim, head_dim, d_state=d_state) if ssm is None else ssm
        if self.ssm.heads * self.ssm.head_dim != filled:
            raise ValueError(
                f"heads must fill the {'inner width' if d_ssm is None else 'width d_ssm'} {filled}, got "
                f"{self.ssm.heads} heads of {self.ssm.head_dim} channels"
            )
        conv_channels = filled + 2 * self.ssm.groups * self.ssm.d_state
        mlp = d_inner - filled
        self.sizes = (mlp, mlp, filled, conv_channels, self.ssm.heads)
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=bias)
        self.conv1d = nn.Conv1d(conv_channels, conv_channels, d_conv, groups=conv_channels, bias=conv_bias)
        self.norm: Any = GatedRMSNorm(filled, groups=self.ssm.groups) if normed else SiluGate()
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        self.others = nn.ModuleList(self._another_branch() for _ in range(directions - 1))

    @property
    def directions(self) -> int:
        """Number of scan orders."""
        return 1 + len(self.others)

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Mix the tokens.

        Args:
            x: tokens.
            orders: one scan order per direction. None is forward for one direction, forward and backward for two.
            mask: True marks a real token; padded ones influence no other.
            seq_idx: number of the packed sequence each token belongs to; they do not see each other.

        Raises:
            ValueError: there is not one order per direction, or one mixes packed sequences.
        """
        beside, parts = self._directions(x, orders, mask, seq_idx)
        return self._output(beside, sum(parts[1:], parts[0]))

    def forward_directions(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the output, and each direction's share of it in natural token order; the shares add up to it.

        The bias of `out_proj` belongs to no direction, the MLP beside the heads to all of them alike.
        """
        beside, parts = self._directions(x, orders, mask, seq_idx)
        shares = torch.stack([self._joined(beside / len(parts), part) for part in parts])
        shares = F.linear(shares, self.out_proj.weight)
        return with_sum(shares, self.out_proj.bias)

    def prefill(
        self,
        x: Float[Tensor, "batch token dim"],
        mask: Bool[Tensor, "batch token"] | None = None,
        cache: MixerCache | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], MixerCache]:
        """Return the output of `forward`, going on from `cache` if there is one, and the cache after the tokens.

        Padding may stand on either side, but a continued sequence is not to be padded in between.

        Raises:
            ValueError: the mixer has more than one direction.
        """
        cache = self.empty_cache(x.shape[0]) if cache is None else cache
        beside, z, xBC, dt = self._project(x)
        xBC = xBC if mask is None else xBC.masked_fill(~mask[..., None], 0.0)
        y, state = self._scan(self, xBC, dt, mask, None, cache)
        return self._output(beside, self.norm(y, z)), MixerCache(cache.last_inputs(xBC, mask), state)

    def step(self, x: Float[Tensor, "batch dim"], cache: MixerCache) -> tuple[Float[Tensor, "batch dim"], MixerCache]:
        """Mix one token after those of `cache`, which is not written to."""
        beside, z, xBC, dt = self._project(x)
        kernel, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        xBC, conv = conv_step(cache.conv, xBC, kernel, bias, activation="silu")
        y, state = self.ssm.step(xBC, dt, cache.state)
        return self._output(beside, self.norm(y, z)), MixerCache(conv, state)

    def empty_cache(self, batch_size: int) -> MixerCache:
        """Return the cache before the first token.

        Raises:
            ValueError: the mixer has more than one direction.
        """
        check_one_direction(self.directions)
        ssm, kernel = self.ssm, self.conv1d.weight
        dtype = torch.promote_types(ssm.A_log.dtype, torch.float32)
        state = ssm.A_log.new_zeros(batch_size, ssm.heads, ssm.head_dim, ssm.d_state, dtype=dtype)
        return MixerCache(kernel.new_zeros(batch_size, len(kernel), kernel.shape[-1]), state)

    def _directions(
        self, x: Tensor, orders: Sequence[ScanOrder] | None, mask: Tensor | None, seq_idx: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the MLP beside the heads, and each direction's input of `out_proj`, in natural token order."""
        beside, z, xBC, dt = self._project(x)
        xBC = xBC if mask is None else xBC.masked_fill(~mask[..., None], 0.0)
        parts = []
        for branch, order in zip([self, *self.others], orders_of(self.directions, orders, x, seq_idx), strict=True):
            y, _ = self._scan(branch, *visit(order, xBC, dt, mask, seq_idx))
            parts.append(self.norm(y if order is None else permute_tokens(y, order.undo()), z))
        return beside, parts

    def _scan(
        self,
        branch: Any,
        xBC: Tensor,
        dt: Tensor,
        mask: Tensor | None,
        seq_idx: Tensor | None,
        cache: MixerCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply the convolution of a direction and the scan of its heads to the tokens as they come."""
        weight, bias = branch.conv1d.weight[None, :, 0], branch.conv1d.bias
        bias = None if bias is None else bias[None]
        before = None if cache is None else cache.before().to(xBC.dtype)
        convolved = causal_conv1d(xBC, weight, bias, seq_idx=seq_idx, initial_tokens=before, activation="silu")
        return branch.ssm(convolved[:, 0], dt, mask, None if cache is None else cache.state, seq_idx)

    def _another_branch(self) -> Mamba2Branch:
        branch = Mamba2Branch(copy.deepcopy(self.conv1d), copy.deepcopy(self.ssm))
        branch.conv1d.reset_parameters()
        branch.ssm.reset_parameters()
        return branch

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the MLP beside the heads, their gate, the inputs of the convolution, and the step sizes."""
        check_width(x, self.in_proj.in_features)
        gate, value, z, xBC, dt = self.in_proj(x).split(self.sizes, -1)
        return F.silu(gate) * value, z, xBC, dt

    def _output(self, beside: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self._joined(beside, y))

    def _joined(self, beside: Tensor, y: Tensor) -> Tensor:
        return torch.cat([beside, y], -1) if beside.shape[-1] else y
