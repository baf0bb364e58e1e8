"""The mixer of Vim's first version: one convolution and one state space, scanned from both ends."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, scaled_size, typed
from transmamba.nn.directions import with_sum
from transmamba.nn.mamba import ScanBranch
from transmamba.nn.ssm import decay_rates, init_decay, step_rank
from transmamba.ops import ScanOrder, causal_conv1d, multi_scan, scan_orders


class ThereAndBackMixer(nn.Module):
    """in_proj -> causal convolution, SiLU, selective SSM scanned forward and backward -> sum, gate -> out_proj.

    The way back has decay rates of its own and shares everything else, also the output of the forward convolution.

    Args:
        d_model: width of the tokens.
        d_state: states per channel.
        d_conv: width of the convolution.
        expand: inner width as a multiple of `d_model`, rounded down.
        dt_rank: rank of the step-size projection; "auto" is ceil(d_model / 16).
        bias: bias of the projections.
        conv_bias: bias of the convolution.

    Reference:
        `bimamba_type="v1"` of the code of arXiv 2401.09417.

    Example:
        >>> ThereAndBackMixer(8)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    directions = 2

    @typed
    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        *,
        d_conv: int = 4,
        expand: int | float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        bias: bool = False,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, d_state=d_state, d_conv=d_conv)
        d_inner = scaled_size(d_model, expand, "expand")
        rank = step_rank(d_model, dt_rank)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.branches: Sequence[ScanBranch] = nn.ModuleList(  # type: ignore[assignment]
            [ScanBranch(d_inner, d_state=d_state, d_conv=d_conv, dt_rank=rank, conv_bias=conv_bias)]
        )
        self.back_A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise this module's own parameters again."""
        init_decay(self.back_A_log)

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Mix the tokens along two orders, forward and backward by default; the convolution follows the first.

        True in `mask` marks a real token.

        Raises:
            ValueError: there are not two orders.
        """
        return self.out_proj(self._scan(x, orders, mask, merge=True))

    def forward_directions(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the output of `forward`, and each direction's share of it without the bias, in natural token order."""
        shares = F.linear(self._scan(x, orders, mask, merge=False).movedim(1, 0), self.out_proj.weight)
        return with_sum(shares, self.out_proj.bias)

    def _scan(self, x: Tensor, orders: Sequence[ScanOrder] | None, mask: Tensor | None, *, merge: bool) -> Tensor:
        check_width(x, self.in_proj.in_features)
        orders = scan_orders(("forward", "backward"), x.shape[1], x.device) if orders is None else orders
        if len(orders) != 2:
            raise ValueError(f"expected 2 scan orders, one per direction, got {len(orders)}")
        (branch,) = self.branches
        u, gate = self.in_proj(x).chunk(2, -1)
        u = u if mask is None else u.masked_fill(~mask[..., None], 0.0)
        bias = None if branch.conv1d.bias is None else branch.conv1d.bias[None]
        u = causal_conv1d(u, branch.conv1d.weight[None, :, 0], bias, orders=orders[:1], activation="silu")
        dt, A, B, C, D, dt_bias = branch.ssm.scan_parameters(u[:, 0])
        y = multi_scan(
            u,
            dt[:, None],
            torch.stack([A, decay_rates(self.back_A_log)]),
            B[:, None],
            C[:, None],
            D[None],
            z=gate,
            dt_bias=dt_bias[None],
            softplus=True,
            orders=orders,
            mask=mask,
            merge=merge,
        )
        assert isinstance(y, Tensor)
        return y
