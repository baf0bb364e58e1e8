"""The Mamba mixer: gate, short convolution and selective scan, along one order or several."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, scaled_size, typed
from transmamba.nn.cache import MixerCache
from transmamba.nn.directions import check_one_direction, with_sum
from transmamba.nn.ssm import SelectiveSSM, scan_directions, step_rank
from transmamba.ops import ScanOrder, causal_conv1d, conv_step, scan_order, selective_step


class ScanBranch(nn.Module):
    """Parameters of one direction of a mixer: a causal convolution and a selective SSM."""

    @typed
    def __init__(self, d_inner: int, *, d_state: int, d_conv: int, dt_rank: int, conv_bias: bool = True) -> None:
        super().__init__()
        check_sizes(d_inner=d_inner, d_state=d_state, d_conv=d_conv, dt_rank=dt_rank)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, bias=conv_bias)
        self.ssm = SelectiveSSM(d_inner, d_state, dt_rank=dt_rank)


class MambaMixer(nn.Module):
    """in_proj -> per direction: causal convolution, SiLU, selective SSM -> sum, gate -> out_proj.

    With one direction it is the block of Mamba; with two, forward and backward, that of VideoMamba, and averaged that
    of Vim. All directions share both projections and the gate, each has a branch of its own.

    Args:
        d_model: width of the tokens.
        d_state: states per channel.
        d_conv: width of the convolution.
        expand: inner width as a multiple of `d_model`, rounded down.
        dt_rank: rank of the step-size projection; "auto" is ceil(d_model / 16).
        directions: number of scan orders.
        bias: bias of the projections.
        conv_bias: bias of the convolutions.
        average: divide the sum of the directions by their number.

    Reference:
        Mamba, arXiv 2312.00752, Figure 3; Vim, arXiv 2401.09417, Algorithm 1.

    Example:
        >>> MambaMixer(8, directions=2)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    @typed
    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        *,
        d_conv: int = 4,
        expand: int | float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        directions: int = 1,
        bias: bool = False,
        conv_bias: bool = True,
        average: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, d_state=d_state, d_conv=d_conv, directions=directions)
        self.average = average
        d_inner = scaled_size(d_model, expand, "expand")
        rank = step_rank(d_model, dt_rank)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.branches: Sequence[ScanBranch] = nn.ModuleList(  # type: ignore[assignment]
            ScanBranch(d_inner, d_state=d_state, d_conv=d_conv, dt_rank=rank, conv_bias=conv_bias)
            for _ in range(directions)
        )
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    @property
    def directions(self) -> int:
        """Number of scan orders."""
        return len(self.branches)

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
            mask: True marks a real token; padded ones influence no other and come out as the bias of `out_proj`.
            seq_idx: number of the packed sequence each token belongs to; they do not see each other.

        Raises:
            ValueError: there is not one order per direction.
        """
        return self.out_proj(self._scan(x, orders, mask, seq_idx=seq_idx).y)

    def forward_directions(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the output of `forward`, and each direction's share in natural token order; the shares add up to it.

        The output projection is linear, so each direction is sent through it alone (its bias belongs to none).
        """
        scanned = self._scan(x, orders, mask, seq_idx=seq_idx, merge=False)
        shares = F.linear(
            rearrange(scanned.y, "batch direction token inner -> direction batch token inner"),
            self.out_proj.weight,
        )
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
        scanned = self._scan(x, None, mask, cache=cache)
        conv = cache.last_inputs(scanned.u, mask)
        return self.out_proj(scanned.y), MixerCache(conv, scanned.last_state[:, 0])

    def step(self, x: Float[Tensor, "batch dim"], cache: MixerCache) -> tuple[Float[Tensor, "batch dim"], MixerCache]:
        """Mix one token after those of `cache`, which is not written to."""
        (branch,) = self.branches
        u, gate = self.in_proj(x).chunk(2, -1)
        u, conv = conv_step(cache.conv, u, branch.conv1d.weight[:, 0], branch.conv1d.bias, activation="silu")
        dt, A, B, C, D, dt_bias = branch.ssm.scan_parameters(u[:, None])
        y, state = selective_step(
            cache.state, u, dt[:, 0], A, B[:, 0], C[:, 0], D, gate, dt_bias=dt_bias, dt_softplus=True
        )
        return self.out_proj(y), MixerCache(conv, state)

    def empty_cache(self, batch_size: int) -> MixerCache:
        """Return the cache before the first token.

        Raises:
            ValueError: the mixer has more than one direction.
        """
        check_one_direction(len(self.branches))
        A_log, kernel = self.branches[0].ssm.A_log, self.branches[0].conv1d.weight
        state = A_log.new_zeros(batch_size, *A_log.shape, dtype=torch.promote_types(A_log.dtype, torch.float32))
        return MixerCache(kernel.new_zeros(batch_size, len(kernel), kernel.shape[-1]), state)

    def _scan(
        self,
        x: Tensor,
        orders: Sequence[ScanOrder] | None,
        mask: Tensor | None,
        *,
        seq_idx: Tensor | None = None,
        merge: bool = True,
        cache: MixerCache | None = None,
    ) -> "_Scanned":
        check_width(x, self.in_proj.in_features)
        orders = self._orders(orders, x)
        u, gate = self.in_proj(x).chunk(2, -1)
        u = u if mask is None else u.masked_fill(~mask[..., None], 0.0)
        weight = torch.stack([branch.conv1d.weight[:, 0] for branch in self.branches])
        biases = [branch.conv1d.bias for branch in self.branches if branch.conv1d.bias is not None]
        bias = torch.stack(biases) if biases else None
        before = None if cache is None else cache.before().to(u.dtype)
        inputs = causal_conv1d(
            u, weight, bias, orders=orders, seq_idx=seq_idx, initial_tokens=before, activation="silu"
        )
        parameters = [
            branch.ssm.scan_parameters(u_k) for branch, u_k in zip(self.branches, inputs.unbind(1), strict=True)
        ]
        start = None if cache is None else cache.state[:, None]
        y, last_state = scan_directions(
            inputs,
            parameters,
            orders,
            z=gate,
            mask=mask,
            seq_idx=seq_idx,
            merge=merge,
            initial_state=start,
            return_last_state=True,
        )
        return _Scanned(y / len(self.branches) if self.average else y, u, last_state)

    def _orders(self, orders: Sequence[ScanOrder] | None, x: Tensor) -> Sequence[ScanOrder] | None:
        count = len(self.branches)
        if orders is None and count == 2:
            return [scan_order(name, x.shape[1], x.device) for name in ("forward", "backward")]
        if (1 if orders is None else len(orders)) != count:
            raise ValueError(f"expected {count} scan orders, one per direction, got {orders and len(orders)}")
        return orders


class _Scanned(NamedTuple):
    """Results of a scan over the tokens."""

    y: Tensor  # gated
    u: Tensor  # input of the convolution
    last_state: Tensor  # (batch, direction, inner, state)
