"""The mixer of VMamba: a map scanned along several orders, each with parameters of its own, stacked."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, scaled_size, typed
from transmamba.nn.activation import ACTIVATIONS, Activation
from transmamba.nn.position import check_grid
from transmamba.nn.ssm import ScanParameters, decay_rates, init_decay, init_step_bias, step_rank
from transmamba.ops import ScanOrder, multi_scan
from transmamba.ops.orders import Grid

Kind = Literal["none", "sigmoid", "softmax", "conv", "norm_conv"]


class StackedSSM(nn.Module):
    """The selective state spaces of several directions, `SelectiveSSM` with the direction as first axis."""

    @typed
    def __init__(self, d_inner: int, d_state: int, *, dt_rank: int, directions: int) -> None:
        super().__init__()
        check_sizes(d_inner=d_inner, d_state=d_state, dt_rank=dt_rank, directions=directions)
        self.d_state, self.dt_rank = d_state, dt_rank
        self.x_proj = nn.Parameter(torch.empty(directions, dt_rank + 2 * d_state, d_inner))
        self.dt_proj = nn.Parameter(torch.empty(directions, d_inner, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, d_inner))
        self.A_log = nn.Parameter(torch.empty(directions, d_inner, d_state))
        self.D = nn.Parameter(torch.empty(directions, d_inner))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        nn.init.uniform_(self.x_proj, -(self.x_proj.shape[2] ** -0.5), self.x_proj.shape[2] ** -0.5)
        nn.init.uniform_(self.dt_proj, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        nn.init.ones_(self.D)
        init_step_bias(self.dt_bias, 1e-3, 1e-1)
        init_decay(self.A_log)

    def scan_parameters(
        self, u: Float[Tensor, "batch length inner"], directions: slice = slice(None)
    ) -> ScanParameters:
        """Compute the scans' inputs from `u`, with a direction axis; each token by itself, so any order may follow."""
        check_width(u, self.x_proj.shape[2], "u")
        x_proj, dt_proj, dt_bias, A_log, D = (
            p[directions] for p in (self.x_proj, self.dt_proj, self.dt_bias, self.A_log, self.D)
        )
        projected = einsum(u, x_proj, "batch token inner, direction row inner -> batch direction token row")
        low, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], -1)
        dt = einsum(low, dt_proj, "batch direction token rank, direction inner rank -> batch direction token inner")
        return ScanParameters(dt, decay_rates(A_log), B, C, D, dt_bias)


class SS2D(nn.Module):
    """in_proj -> 2-D convolution, SiLU, a selective SSM per order -> sum, LayerNorm -> gate -> out_proj.

    Args:
        dim: width of the tokens.
        d_state: states per channel.
        d_conv: side of the convolution; odd. None leaves it out.
        expand: inner width as a multiple of `dim`.
        dt_rank: rank of the step-size projection; "auto" is ceil(dim / 16).
        directions: number of scan orders.
        conv_bias: bias of the convolution.
        activation: after the convolution, and of the gate.
        gated: multiply by a second half of `in_proj`, activated.
        gate_activation: whether that half is activated.
        out_norm: builds the module after the scan from a width, called with tokens and grid; a LayerNorm by default.
        out_activation: a GELU after it.
        dropout: rate at which numbers of the output are dropped while training.

    Raises:
        ValueError: `d_conv` is even, or `expand` leaves no channel; on the call, the tokens do not fill the grid.
    """

    @typed
    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        *,
        d_conv: int | None = 3,
        expand: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        directions: int = 4,
        conv_bias: bool = True,
        activation: Activation = "silu",
        gated: bool = True,
        gate_activation: bool = True,
        out_norm: Callable[[int], nn.Module] | None = None,
        out_activation: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, d_state=d_state, d_conv=d_conv, directions=directions)
        d_inner = scaled_size(dim, expand, "expand")
        self.gated, self.gate_activation, self.out_activation = gated, gate_activation, out_activation
        self.activation, self.dropout = activation, nn.Dropout(dropout)
        self.in_proj = nn.Linear(dim, (2 if gated else 1) * d_inner, bias=False)
        self.conv2d: nn.Module = nn.Identity()
        if d_conv is not None:
            check_odd(d_conv)
            self.conv2d = nn.Conv2d(d_inner, d_inner, d_conv, padding=d_conv // 2, groups=d_inner, bias=conv_bias)
        rank = step_rank(dim, dt_rank)
        self.ssm: Any = StackedSSM(d_inner, d_state, dt_rank=rank, directions=directions)
        self.out_norm: Any = nn.LayerNorm(d_inner) if out_norm is None else out_norm(d_inner)
        self.out_proj = nn.Linear(d_inner, dim, bias=False)

    @typed
    def forward(
        self, x: Float[Tensor, "batch token dim"], orders: Sequence[ScanOrder], grid: Grid
    ) -> Float[Tensor, "batch token dim"]:
        """Mix the tokens of `grid`, one order per direction."""
        y, gate = self._scan(x, orders, grid, merge=True)
        y = self.out_norm(y) if isinstance(self.out_norm, nn.LayerNorm) else self.out_norm(y, grid)
        y = F.gelu(y) if self.out_activation else y
        return self.dropout(self.out_proj(y if gate is None else y * gate))

    def forward_directions(
        self, x: Tensor, orders: Sequence[ScanOrder], grid: Grid
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the output of `forward`, and each direction's share in natural token order; the shares add up to it.

        The norm is not linear: all directions are scaled by the deviation of their sum, and share its bias evenly.

        Raises:
            NotImplementedError: the scan is not followed by a LayerNorm alone, so there is no such split.
        """
        if not isinstance(self.out_norm, nn.LayerNorm) or self.out_activation:
            raise NotImplementedError(
                "the output is not a sum over directions: it is split only where a LayerNorm, and nothing else, "
                "follows the scan"
            )
        y, gate = self._scan(x, orders, grid, merge=False)
        deviation = torch.sqrt(y.sum(1, keepdim=True).var(-1, correction=0, keepdim=True) + self.out_norm.eps)
        normed = (y - y.mean(-1, keepdim=True)) / deviation * self.out_norm.weight + self.out_norm.bias / y.shape[1]
        shares = self.out_proj(normed if gate is None else normed * gate[:, None]).movedim(1, 0)
        shares = shares * self.dropout(torch.ones_like(shares[0]))
        return shares.sum(0), shares

    def _scan(self, x: Tensor, orders: Sequence[ScanOrder], grid: Grid, *, merge: bool) -> tuple[Tensor, Tensor | None]:
        check_width(x, self.in_proj.in_features)
        check_grid(x, grid)
        u, gate = self.in_proj(x).chunk(2, -1) if self.gated else (self.in_proj(x), None)
        rows, columns = grid
        u = rearrange(u, "batch (row column) inner -> batch inner row column", row=rows, column=columns)
        act = ACTIVATIONS[self.activation]
        u = rearrange(act(self.conv2d(u)), "batch inner row column -> batch (row column) inner")
        y = self._scan_map(u, orders, grid, merge=merge)
        return y, gate if gate is None or not self.gate_activation else act(gate)

    def _scan_map(self, u: Tensor, orders: Sequence[ScanOrder], grid: Grid, *, merge: bool) -> Tensor:
        dt, A, B, C, D, dt_bias = self.ssm.scan_parameters(u)
        y = multi_scan(u, dt, A, B, C, D, dt_bias=dt_bias, softplus=True, orders=orders, merge=merge)
        assert isinstance(y, Tensor)
        return y


def check_odd(d_conv: int) -> None:
    """Raise ValueError for a convolution without a centre, whose map would have another size."""
    if d_conv % 2 == 0:
        raise ValueError(f"the side of the convolution must be odd, got d_conv={d_conv}")


class SpatialNorm(nn.Module):
    """Alternatives to the LayerNorm that follows the scan of VMamba.

    Args:
        dim: width of the tokens.
        kind: "none", "sigmoid", "softmax" over the tokens of each channel, "conv" (depthwise, 3 x 3) or "norm_conv".
    """

    @typed
    def __init__(self, dim: int, kind: Kind) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.kind = kind
        if kind == "norm_conv":
            self.norm = nn.LayerNorm(dim)
        if kind in ("conv", "norm_conv"):
            setattr(self, kind, nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False))

    @typed
    def forward(self, x: Float[Tensor, "batch token dim"], grid: Grid) -> Float[Tensor, "batch token dim"]:
        """Apply the module of this kind to the tokens of a grid."""
        if self.kind == "sigmoid":
            return torch.sigmoid(x)
        if self.kind == "softmax":
            return x.softmax(1)
        if self.kind == "none":
            return x
        x = self.norm(x) if self.kind == "norm_conv" else x
        return getattr(self, self.kind)(x.mT.unflatten(2, grid)).flatten(2).mT
