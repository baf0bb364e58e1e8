"""The mixer of PlainMamba: several orders through one state space, with a parameter for the direction of each step."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, scaled_size, typed
from transmamba.nn.directions import with_sum
from transmamba.nn.position import check_grid
from transmamba.nn.ss2d import check_odd
from transmamba.nn.ssm import SelectiveSSM, step_rank
from transmamba.ops import ScanOrder, multi_scan
from transmamba.ops.orders import Grid, stack_orders


class PlainMambaMixer(nn.Module):
    """in_proj -> 2-D convolution, SiLU, one selective SSM along several orders -> sum, gate -> out_proj.

    All orders share the parameters; each step adds to B a vector for the move that led to its token.

    Args:
        dim: width of the tokens.
        d_state: states per channel.
        d_conv: side of the convolution; odd.
        expand: inner width as a multiple of `dim`, rounded down.
        dt_rank: rank of the step-size projection; "auto" is ceil(dim / 16).
        bias: bias of the projections.
        conv_bias: bias of the convolution.
        released_scan: scan as the released checkpoints were trained: step s takes dt, B and C from token s in raster
            order instead of the token it visits, and the step bias is added twice.

    Raises:
        ValueError: `d_conv` is even; on the call, tokens, grid, orders and moves do not fit each other.
    """

    @typed
    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        *,
        d_conv: int = 7,
        expand: int | float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        bias: bool = True,
        conv_bias: bool = True,
        released_scan: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, d_state=d_state, d_conv=d_conv)
        check_odd(d_conv)
        d_inner = scaled_size(dim, expand, "expand")
        self.released_scan = released_scan
        self.in_proj = nn.Linear(dim, 2 * d_inner, bias=bias)
        self.conv2d = nn.Conv2d(d_inner, d_inner, d_conv, padding=d_conv // 2, groups=d_inner, bias=conv_bias)
        self.ssm = SelectiveSSM(d_inner, d_state, dt_rank=step_rank(dim, dt_rank))
        self.direction_B = nn.Parameter(torch.empty(5, d_state))
        self.out_proj = nn.Linear(d_inner, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values of this module's own parameters again."""
        nn.init.trunc_normal_(self.direction_B, std=0.02)

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder],
        moves: Int[Tensor, "direction token"],
        grid: Grid,
    ) -> Float[Tensor, "batch token dim"]:
        """Mix the tokens of `grid`; `moves` are `moves_between` for these orders."""
        return self.out_proj(self._scan(x, orders, moves, grid, merge=True))

    def forward_directions(
        self, x: Tensor, orders: Sequence[ScanOrder], moves: Tensor, grid: Grid
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the output of `forward`, and each order's share of it without the bias, in natural token order."""
        y = self._scan(x, orders, moves, grid, merge=False)
        shares = F.linear(y.movedim(1, 0), self.out_proj.weight)
        return with_sum(shares, self.out_proj.bias)

    def _scan(self, x: Tensor, orders: Sequence[ScanOrder], moves: Tensor, grid: Grid, *, merge: bool) -> Tensor:
        check_width(x, self.in_proj.in_features)
        check_grid(x, grid)
        u, gate = self.in_proj(x).chunk(2, -1)
        rows, columns = grid
        u = rearrange(u, "batch (row column) inner -> batch inner row column", row=rows, column=columns)
        u = rearrange(F.silu(self.conv2d(u)), "batch inner row column -> batch (row column) inner")
        dt, A, B, C, D, dt_bias = self.ssm.scan_parameters(u)
        table = stack_orders(orders, x.shape[1])
        if moves.shape != table.index.shape:
            raise ValueError(f"moves have shape {tuple(moves.shape)}: expected {tuple(table.index.shape)}")
        if not self.released_scan:  # a move belongs to the token it leads to
            moves = moves.gather(1, table.inverse)
        y = multi_scan(
            u,
            dt[:, None],
            A[None],
            B[:, None] + self.direction_B[moves],
            C[:, None],
            D[None],
            z=gate,
            dt_bias=dt_bias[None] * (2 if self.released_scan else 1),
            softplus=True,
            orders=orders,
            merge=merge,
            parameters_by_step=self.released_scan,
        )
        assert isinstance(y, Tensor)
        return y


@typed
def moves_between(orders: Sequence[ScanOrder], grid: Grid) -> Int[Tensor, "direction token"]:
    """Return for each step of each order the move that led to it: 0 none, 1 right, 2 left, 3 up, 4 down.

    The orders go from neighbour to neighbour, as snakes do.

    Raises:
        ValueError: there is no order, or one does not visit the grid's tokens.
    """
    visits = stack_orders(orders, torch.Size(grid).numel()).index
    down = (visits // grid[1]).diff(dim=1)
    right = (visits % grid[1]).diff(dim=1)
    moves = (right == 1) * 1 + (right == -1) * 2 + (down == -1) * 3 + (down == 1) * 4
    return F.pad(moves, (1, 0))
