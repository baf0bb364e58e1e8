"""The Mamba-3 mixer (single input, single output): no convolution, trapezoidal rule, rotating states."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.nn.directions import check_one_direction, orders_of, visit
from transmamba.nn.norm import RMSNorm
from transmamba.nn.ssm import init_step_bias
from transmamba.ops import ScanOrder, TrapezoidState, permute_tokens, trapezoidal_scan, trapezoidal_step

ScanInputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # x, dt, A, B, C, blend, theta
Projected = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # x, B, C, dt, A, blend, theta


def heavy_tail(x: Tensor) -> Tensor:
    """Compute 1 + x for positive x, 1 / (1 - x) for negative: positive, and flatter than softplus on the left."""
    return x.clamp_min(0) + 1 / (1 - x.clamp_max(0))


class Mamba3Branch(nn.Module):
    """The own part of a further direction of a mixer: norms and biases of B and C, step-size bias, direct path D."""

    def __init__(self, heads: int, d_state: int) -> None:
        super().__init__()
        _own(self, heads, d_state)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values of this module's own parameters again."""
        _draw(self)


class Mamba3Mixer(nn.Module):
    """in_proj -> norm, bias and rotation of B and C -> trapezoidal scan by heads -> gate -> out_proj.

    The decay A = -max(decay(.), 1e-4), the step size, the blend of the trapezoid's ends and the speeds of rotation
    all come from the token. Several directions share both projections and the gate; each has norms and biases of B and
    C, a step-size bias and a D of its own.

    Args:
        d_model: width of the tokens.
        d_state: states per channel.
        head_dim: channels per head.
        expand: inner width as a multiple of `d_model`.
        groups: groups of heads that share B and C before their biases.
        rotary_fraction: share of the states that rotate.
        decay: from a projection to a positive decay rate; softplus in the paper, `heavy_tail` in mamba_ssm since June
            2026.
        directions: number of scan orders.

    Raises:
        ValueError: `head_dim` does not divide the inner width, the groups do not divide the heads, or nothing rotates.

    Reference:
        Mamba-3, arXiv 2603.15569; parameter names as in mamba_ssm. The form with several inputs and outputs is not
        built here.

    Example:
        >>> Mamba3Mixer(8, 4, head_dim=4)(torch.zeros(2, 7, 8)).shape
        torch.Size([2, 7, 8])
    """

    D: nn.Parameter

    @typed
    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        *,
        head_dim: int = 64,
        expand: int = 2,
        groups: int = 1,
        rotary_fraction: float = 0.5,
        decay: Callable[[Tensor], Tensor] = heavy_tail,
        directions: int = 1,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, d_state=d_state, head_dim=head_dim, expand=expand, groups=groups)
        check_sizes(directions=directions)
        d_inner = expand * d_model
        if not 0 < rotary_fraction <= 1:
            raise ValueError(f"rotary_fraction must be in (0, 1], got {rotary_fraction}")
        heads, pairs = d_inner // head_dim, int(d_state * rotary_fraction) // 2
        if heads * head_dim != d_inner or heads % groups or not 0 < 2 * pairs <= d_state:
            raise ValueError(
                f"expected heads that fill {d_inner} channels, groups that divide them and some pairs of rotating "
                f"states, got {heads} heads of {head_dim} channels, {groups} groups, {pairs} pairs of {d_state} states"
            )
        self.heads, self.groups, self.decay = heads, groups, decay
        self.sizes = (d_inner, d_inner, groups * d_state, groups * d_state, heads, heads, heads, pairs)
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=False)
        _own(self, heads, d_state)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.reset_parameters()
        self.others = nn.ModuleList(Mamba3Branch(heads, d_state) for _ in range(directions - 1))

    @property
    def directions(self) -> int:
        """Number of scan orders."""
        return 1 + len(self.others)

    def reset_parameters(self) -> None:
        """Draw the initial values of this module's own parameters again."""
        _draw(self)

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Mix the tokens along one order per direction; by default forward for one, forward and backward for two.

        True in `mask` marks a real token; where `seq_idx` changes, another packed sequence begins.

        Raises:
            ValueError: there is not one order per direction, or one mixes packed sequences.
        """
        parts = self._directions(x, orders, mask, seq_idx)
        return self.out_proj(sum(parts[1:], parts[0]))

    def forward_directions(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the output, and each direction's share of it in natural token order; the shares add up to it."""
        shares = F.linear(torch.stack(self._directions(x, orders, mask, seq_idx)), self.out_proj.weight)
        return shares.sum(0), shares

    def prefill(
        self,
        x: Float[Tensor, "batch token dim"],
        mask: Bool[Tensor, "batch token"] | None = None,
        cache: TrapezoidState | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], TrapezoidState]:
        """Return the output of `forward`, going on from `cache` if there is one, and the cache after the tokens.

        Padding may stand on either side, but a continued sequence is not to be padded in between.

        Raises:
            ValueError: the mixer has more than one direction.
        """
        check_one_direction(self.directions)
        z, projected = self._project(x)
        y, cache = trapezoidal_scan(*self._inputs(self, projected), self.D, z, initial=cache, mask=mask)
        return self.out_proj(y.flatten(2)), cache

    def step(
        self, x: Float[Tensor, "batch dim"], cache: TrapezoidState
    ) -> tuple[Float[Tensor, "batch dim"], TrapezoidState]:
        """Mix one token after those of `cache`, which is not written to."""
        z, projected = self._project(x)
        y, cache = trapezoidal_step(cache, *self._inputs(self, projected), self.D, z)
        return self.out_proj(y.flatten(1)), cache

    def empty_cache(self, batch_size: int) -> TrapezoidState:
        """Return the cache before the first token.

        Raises:
            ValueError: the mixer has more than one direction.
        """
        nothing = self.in_proj.weight.new_zeros(batch_size, 0, self.in_proj.in_features)
        return self.prefill(nothing)[1]

    def _directions(
        self, x: Tensor, orders: Sequence[ScanOrder] | None, mask: Tensor | None, seq_idx: Tensor | None
    ) -> list[Tensor]:
        """Return each direction's input of `out_proj`, in natural token order."""
        z, projected = self._project(x)
        parts = []
        for branch, order in zip([self, *self.others], orders_of(self.directions, orders, x, seq_idx), strict=True):
            inputs = cast(ScanInputs, tuple(visit(order, *self._inputs(branch, projected))))
            gate, real, segments = visit(order, z, mask, seq_idx)
            y, _ = trapezoidal_scan(*inputs, branch.D, gate, mask=real, seq_idx=segments)
            parts.append((y if order is None else permute_tokens(y, order.undo(), 1)).flatten(2))
        return parts

    def _project(self, x: Tensor) -> tuple[Tensor, Projected]:
        """Return the gate and the inputs that all directions share; x and gate by head."""
        check_width(x, self.in_proj.in_features)
        z, u, B, C, dt, rate, blend, theta = self.in_proj(x).split(self.sizes, -1)
        z, u = (t.unflatten(-1, (self.heads, -1)) for t in (z, u))
        dt, rate, blend, theta = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (dt, rate, blend, theta))
        theta = (torch.pi * theta.tanh()).unsqueeze(-2).expand(*theta.shape[:-1], self.heads, -1)
        return z, (u, B, C, dt, -self.decay(rate).clamp_min(1e-4), blend.sigmoid(), theta)

    def _inputs(self, branch: Any, projected: Projected) -> ScanInputs:
        """Return the inputs of the scan of one direction, tokens in natural order."""
        u, B, C, dt, A, blend, theta = projected
        B, C = self._by_head(B, branch.B_norm, branch.B_bias), self._by_head(C, branch.C_norm, branch.C_bias)
        return u, F.softplus(dt + branch.dt_bias), A, B, C, blend, theta

    def _by_head(self, x: Tensor, norm: nn.Module, bias: Tensor) -> Tensor:
        """Return B or C of every head, (..., head, state)."""
        grouped = norm(x.unflatten(-1, (self.groups, -1)))
        return grouped.repeat_interleave(self.heads // self.groups, -2) + bias[:, 0]


def _own(module: Any, heads: int, d_state: int) -> None:
    """Give a module the parameters of one direction."""
    module.B_norm, module.C_norm = RMSNorm(d_state), RMSNorm(d_state)
    module.B_bias, module.C_bias = (nn.Parameter(torch.empty(heads, 1, d_state)) for _ in range(2))
    module.dt_bias, module.D = (nn.Parameter(torch.empty(heads)) for _ in range(2))


def _draw(module: Any) -> None:
    """Draw the initial values of the parameters of one direction."""
    for parameter in (module.B_bias, module.C_bias, module.D):
        nn.init.ones_(parameter)
    init_step_bias(module.dt_bias, 1e-3, 1e-1)
