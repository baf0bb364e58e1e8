"""The selective state-space layer of one direction: its parameters and their initial values."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.ops import ScanOrder, multi_scan


class ScanParameters(NamedTuple):
    """Arguments that a scan of one direction needs beside its input."""

    dt: Float[Tensor, "batch length inner"]
    A: Float[Tensor, "inner state"]
    B: Float[Tensor, "batch length state"]
    C: Float[Tensor, "batch length state"]
    D: Float[Tensor, " inner"]
    dt_bias: Float[Tensor, " inner"]


class SelectiveSSM(nn.Module):
    """dt, B and C from the input, then the scan (Eqs. 1-2).

    The step size is softplus(dt_proj(x_proj(u)_dt) + dt_bias); its bias starts so that the steps are spread evenly, on
    a log scale, over [dt_min, dt_max]. The bias is a parameter of its own (mamba_ssm: `dt_proj.bias`) because it joins
    inside the scan, in float32. A = -exp(A_log) starts at -1, ..., -d_state in every channel, D at one.

    Args:
        d_inner: channels of the scan.
        d_state: states per channel.
        dt_rank: rank of the step-size projection.
        dt_min: smallest initial step.
        dt_max: largest initial step.

    Raises:
        ValueError: not 0 < dt_min <= dt_max; on the call, the input has another width.

    Reference:
        Mamba, arXiv 2312.00752; the other parameter names as in mamba_ssm.
    """

    @typed
    def __init__(
        self, d_inner: int, d_state: int = 16, *, dt_rank: int, dt_min: float = 1e-3, dt_max: float = 1e-1
    ) -> None:
        super().__init__()
        check_sizes(d_inner=d_inner, d_state=d_state, dt_rank=dt_rank)
        if not 0 < dt_min <= dt_max < math.inf:
            raise ValueError(f"initial steps must be positive and finite, got {dt_min} to {dt_max}")
        self.d_state, self.dt_rank, self.dt_min, self.dt_max = d_state, dt_rank, dt_min, dt_max
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.parameter_norm: nn.Module = nn.Identity()
        self.dt_proj = nn.Linear(dt_rank, d_inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(d_inner))
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        self.x_proj.reset_parameters()
        scale = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -scale, scale)
        nn.init.ones_(self.D)
        init_step_bias(self.dt_bias, self.dt_min, self.dt_max)
        init_decay(self.A_log)

    def scan_parameters(self, u: Float[Tensor, "batch length inner"]) -> ScanParameters:
        """Compute the inputs of the scan over `u`; they are functions of each token alone, so any order may follow."""
        check_width(u, self.x_proj.in_features, "u")
        parts = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], -1)
        low, B, C = (self.parameter_norm(part) for part in parts)
        return ScanParameters(self.dt_proj(low), decay_rates(self.A_log), B, C, self.D, self.dt_bias)

    @typed
    def forward(
        self, u: Float[Tensor, "batch length inner"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length inner"]:
        """Scan the tokens from first to last. True in `mask` marks a real token."""
        return scan_directions(u[:, None], [self.scan_parameters(u)], mask=mask)[:, 0]


def step_rank(width: int, rank: int | Literal["auto"]) -> int:
    """Return the rank of the step-size projection; "auto" is Mamba's ceil(width / 16)."""
    if rank == "auto":
        return math.ceil(width / 16)
    check_sizes(dt_rank=rank)
    return rank


@torch.no_grad()
def init_step_bias(dt_bias: Tensor, dt_min: float, dt_max: float) -> None:
    """Fill a step-size bias so that softplus(dt_bias) is spread evenly, on a log scale, over [dt_min, dt_max]."""
    span = math.log(dt_max) - math.log(dt_min)
    dt = torch.exp(torch.rand_like(dt_bias) * span + math.log(dt_min))
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


@torch.no_grad()
def init_decay(A_log: Tensor) -> None:
    """Fill A_log (inner, state) so that the decay rates of every channel are -1, ..., -d_state."""
    A_log.copy_(torch.ones_like(A_log).cumsum(-1).log())  # no new tensor of another kind: it may be sharded


def decay_rates(A_log: Tensor) -> Tensor:
    """Compute A = -exp(A_log), at least in float32 whatever the parameter's dtype."""
    return -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))


def scan_directions(
    u: Float[Tensor, "batch #direction length inner"],
    parameters: Sequence[ScanParameters],
    orders: Sequence[ScanOrder] | None = None,
    **options: Any,
) -> Tensor:
    """Run one `multi_scan` over several directions.

    `u` and `parameters` hold one entry per direction, or a single one that all directions share. `options` go to
    `multi_scan`.
    """
    if not parameters:
        raise ValueError("parameters is empty: expected those of at least one direction")
    dt, A, B, C, D, dt_bias = zip(*parameters, strict=True)
    return multi_scan(  # type: ignore[return-value]
        u,
        _join(dt, 1),
        _join(A, 0),
        _join(B, 1),
        _join(C, 1),
        _join(D, 0),
        dt_bias=_join(dt_bias, 0),
        softplus=True,
        orders=orders,
        **options,
    )


def _join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Stack the parts as `torch.stack` does, without a copy of a single part."""
    return parts[0].unsqueeze(dim) if len(parts) == 1 else torch.stack(tuple(parts), dim)
