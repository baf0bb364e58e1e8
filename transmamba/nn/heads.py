"""The heads of a Mamba-2 mixer: their parameters, initial values and scan."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.nn.ssm import decay_rates, init_step_bias
from transmamba.ops import ssd_scan, ssd_step
from transmamba.ops.ssd import check_limits


class HeadSSM(nn.Module):
    """Parameters of the heads of a Mamba-2 mixer: decay A, step-size bias and direct path D.

    A starts evenly spread over [-16, -1], the step sizes evenly on a log scale over [1e-3, 1e-1], D at one.

    Args:
        heads: number of heads.
        head_dim: channels per head.
        d_state: states per channel.
        groups: groups of heads that share B and C.
        channel_skip: D has one weight per channel instead of one per head.
        dt_limit: smallest and largest step size.
        chunk_size: tokens per matrix product of the scan; changes the speed, not the result.

    Raises:
        ValueError: the groups do not divide the heads, or `dt_limit` is not an interval of step sizes.
    """

    @typed
    def __init__(
        self,
        heads: int,
        head_dim: int = 64,
        *,
        d_state: int = 128,
        groups: int = 1,
        channel_skip: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        chunk_size: int = 64,
    ) -> None:
        super().__init__()
        check_sizes(heads=heads, head_dim=head_dim, d_state=d_state, groups=groups, chunk_size=chunk_size)
        check_limits(dt_limit)
        if heads % groups:
            raise ValueError(f"groups must divide the heads: got {groups} groups, {heads} heads")
        self.heads, self.head_dim, self.d_state, self.groups = heads, head_dim, d_state, groups
        self.dt_limit, self.chunk_size = dt_limit, chunk_size
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads * head_dim if channel_skip else heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
        nn.init.ones_(self.D)
        init_step_bias(self.dt_bias, 1e-3, 1e-1)

    @typed
    def forward(
        self,
        xBC: Float[Tensor, "batch token conv_channel"],
        dt: Float[Tensor, "batch token head"],
        mask: Bool[Tensor, "batch token"] | None = None,
        initial_state: Float[Tensor, "batch head channel state"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> tuple[Float[Tensor, "batch token inner"], Float[Tensor, "batch head channel state"]]:
        """Scan the tokens; x, B and C come side by side. Outputs and the state after the last token.

        Raises:
            ValueError: a width or the shape of the state is not that of the heads.
        """
        shape = (self.heads, self.head_dim, self.d_state)
        if initial_state is not None and initial_state.shape[1:] != shape:
            raise ValueError(f"initial_state is {tuple(initial_state.shape[1:])} per sample: expected {shape}")
        y, last_state = ssd_scan(
            *self._inputs(xBC, dt),
            dt_bias=self.dt_bias,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            initial_state=initial_state,
            seq_idx=seq_idx,
            mask=mask,
            chunk_size=self.chunk_size,
            return_last_state=True,
        )
        return y.flatten(2), last_state

    def step(self, xBC: Tensor, dt: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Scan one token (batch, channel) from `state`: return the output and the state after it."""
        y, state = ssd_step(
            state, *self._inputs(xBC, dt), dt_bias=self.dt_bias, dt_softplus=True, dt_limit=self.dt_limit
        )
        return y.flatten(1), state

    def _inputs(self, xBC: Tensor, dt: Tensor) -> tuple[Tensor, ...]:
        shared = self.groups * self.d_state
        check_width(xBC, self.heads * self.head_dim + 2 * shared, "xBC")
        check_width(dt, self.heads, "dt")
        x, B, C = xBC.split([self.heads * self.head_dim, shared, shared], -1)
        B, C = (z.unflatten(-1, (self.groups, self.d_state)) for z in (B, C))
        D = self.D if len(self.D) == self.heads else self.D.unflatten(0, (self.heads, self.head_dim))
        return x.unflatten(-1, (self.heads, self.head_dim)), dt, decay_rates(self.A_log), B, C, D
