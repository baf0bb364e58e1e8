"""Mixers of VMamba that its authors tried: rows first and then columns, and heads as in Mamba-2."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.nn.ss2d import SS2D
from transmamba.nn.ssm import ScanParameters, decay_rates, init_step_bias, step_rank
from transmamba.ops import ScanOrder, multi_scan, scan_orders
from transmamba.ops.orders import Grid


class CascadeSS2D(SS2D):
    """An `SS2D` that scans every row from both ends, and then every column of the result.

    The steps of the way back are not put back in place before they are added: token w of a row gets the output of
    the way back at its step w, as the official code has it.

    Reference:
        `v052dc` of the code of arXiv 2401.10166.
    """

    def forward_directions(self, x: Tensor, orders: Sequence[ScanOrder], grid: Grid) -> tuple[Tensor, Tensor]:
        """Raise NotImplementedError: columns read the output of rows, so the result is not a sum over directions."""
        raise NotImplementedError(
            "the output is not a sum over directions: columns are scanned after rows, over the output of the rows"
        )

    def _scan_map(self, u: Tensor, orders: Sequence[ScanOrder], grid: Grid, *, merge: bool) -> Tensor:
        u = u.unflatten(1, grid)
        u = self._lines(self._lines(u, slice(0, 2)).transpose(1, 2), slice(2, 4)).transpose(1, 2)
        return u.flatten(1, 2)

    def _lines(self, u: Tensor, directions: slice) -> Tensor:
        """Normalise lines (batch, line, token, inner) and scan each by itself along two directions."""
        lines = F.layer_norm(u, u.shape[-1:]).flatten(0, 1)
        dt, A, B, C, D, dt_bias = self.ssm.scan_parameters(lines, directions)
        orders = scan_orders(("forward", "backward"), lines.shape[1], u.device)
        y = multi_scan(lines, dt, A, B, C, D, dt_bias=dt_bias, softplus=True, orders=orders, merge=False)
        assert isinstance(y, Tensor)
        return (y[:, 0] + y[:, 1].flip(1)).view(u.shape)


class StackedHeadSSM(nn.Module):
    """`StackedSSM` with the heads of Mamba-2: one step size and decay rate for all channels of a head.

    Raises:
        ValueError: the heads do not divide the inner width.
    """

    @typed
    def __init__(self, d_inner: int, d_state: int, *, heads: int, directions: int) -> None:
        super().__init__()
        check_sizes(d_inner=d_inner, d_state=d_state, heads=heads, directions=directions)
        if d_inner % heads:
            raise ValueError(f"heads must divide the inner width: got {heads} heads, width {d_inner}")
        self.sizes, self.channels = [heads, d_state, d_state], d_inner // heads
        self.x_proj = nn.Parameter(torch.empty(directions, sum(self.sizes), d_inner))
        self.dt_bias = nn.Parameter(torch.empty(directions, heads))
        self.A_log = nn.Parameter(torch.empty(directions, heads))
        self.D = nn.Parameter(torch.empty(directions, heads, self.channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        nn.init.uniform_(self.x_proj, -(self.x_proj.shape[2] ** -0.5), self.x_proj.shape[2] ** -0.5)
        nn.init.ones_(self.D)
        nn.init.zeros_(self.A_log)
        init_step_bias(self.dt_bias, 1e-3, 1e-1)

    @typed
    def scan_parameters(self, u: Float[Tensor, "batch length inner"]) -> ScanParameters:
        """Compute the inputs of the scans over `u`, repeated for the channels of each head."""
        check_width(u, self.x_proj.shape[2], "u")
        projected = einsum(u, self.x_proj, "batch token inner, direction row inner -> batch direction token row")
        dt, B, C = projected.split(self.sizes, -1)
        dt, A, dt_bias = (x.repeat_interleave(self.channels, -1) for x in (dt, decay_rates(self.A_log), self.dt_bias))
        return ScanParameters(dt, A[..., None].expand(-1, -1, self.sizes[1]), B, C, self.D.flatten(1), dt_bias)


class HeadedSS2D(SS2D):
    """An `SS2D` with `StackedHeadSSM`; `dt_rank` is the number of heads.

    Reference:
        `m0` of the code of arXiv 2401.10166.
    """

    @typed
    def __init__(self, dim: int, d_state: int = 16, *, dt_rank: int | Literal["auto"] = "auto", **options: Any) -> None:
        super().__init__(dim, d_state, dt_rank=dt_rank, **options)
        directions, _, d_inner = self.ssm.x_proj.shape
        self.ssm = StackedHeadSSM(d_inner, d_state, heads=step_rank(dim, dt_rank), directions=directions)
        if isinstance(self.conv2d, nn.Conv2d):  # the official one stands between two changes of layout
            self.conv2d = nn.Sequential(OrderedDict(map=self.conv2d))
