"""Layer norms and root-mean-square norms, plain and gated."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed


class LayerNorm(nn.Module):
    """torch's LayerNorm, which also takes a stream of another dtype than its weights and gives that of the weights.

    Args:
        dim: width of the tokens.
        eps: added to the variance.
        bias: add a learned constant.
    """

    @typed
    def __init__(self, dim: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    @typed
    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Normalise each token by itself."""
        check_width(x, len(self.weight))
        if x.dtype == self.weight.dtype:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        compute = _at_least_float32(x)
        weight, bias = (None if p is None else p.to(compute) for p in (self.weight, self.bias))
        return F.layer_norm(x.to(compute), self.weight.shape, weight, bias, self.eps).to(self.weight.dtype)

    def reset_parameters(self) -> None:
        """Set the weight to one and the bias to zero."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over all tokens of a batch, channels last; on a map it is BatchNorm2d, by whose names it loads.

    Example:
        >>> TokenBatchNorm(3)(torch.rand(2, 4, 5, 3)).shape
        torch.Size([2, 4, 5, 3])
    """

    @typed
    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Normalise each channel by its statistics over the batch in training, by those kept otherwise."""
        check_width(x, self.num_features)
        return super().forward(x.reshape(-1, self.num_features)).view(x.shape)


class RMSNorm(nn.Module):
    """x / rms(x) times a weight, computed in at least float32 and given in the dtype of the weight.

    A residual stream may thus stay float32 while the layers that read it are bfloat16. The state dict is that of
    `torch.nn.RMSNorm`.

    Args:
        dim: width of the tokens.
        eps: added to the mean square.
    """

    @typed
    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    @typed
    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Normalise each token by itself."""
        check_width(x, len(self.weight))
        return _rms_norm(x, self.eps, self.weight).to(self.weight.dtype)

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)


class GatedRMSNorm(nn.Module):
    """norm(x silu(z)) times a weight; each group of channels has a root mean square of its own.

    Args:
        dim: width of the tokens.
        groups: number of groups.
        norm_before_gate: norm(x) times the weight and silu(z) instead.
        eps: added to the mean square.

    Raises:
        ValueError: the groups do not divide the width.
    """

    @typed
    def __init__(self, dim: int, *, groups: int = 1, norm_before_gate: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        check_sizes(dim=dim, groups=groups)
        if dim % groups:
            raise ValueError(f"the groups of the norm must divide its width: got {groups} groups, width {dim}")
        self.groups, self.norm_before_gate, self.eps = groups, norm_before_gate, eps
        self.weight = nn.Parameter(torch.ones(dim))

    @typed
    def forward(self, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Normalise each token by itself."""
        check_width(x, len(self.weight))
        gate = F.silu(z.to(_at_least_float32(z)))
        if self.norm_before_gate:
            y = self._normed(x) * gate
        else:
            y = self._normed(x * gate)
        return y.to(self.weight.dtype)

    def _normed(self, x: Tensor) -> Tensor:
        y = _rms_norm(x.unflatten(-1, (self.groups, -1)), self.eps).flatten(-2)
        return y * self.weight.to(y.dtype)

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)


class SiluGate(nn.Module):
    """x silu(z): a `GatedRMSNorm` without its norm."""

    @typed
    def forward(self, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Gate each number by itself."""
        compute = _at_least_float32(x)
        return (x.to(compute) * F.silu(z.to(compute))).to(x.dtype)


class UnitRMSNorm(nn.Module):
    """x / rms(x), for any width; FalconMamba applies it to dt, B and C."""

    @typed
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    @typed
    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Normalise each token by itself."""
        return _rms_norm(x, self.eps).to(x.dtype)


def build_norm(kind: Literal["layer", "rms"], dim: int, eps: float, bias: bool) -> nn.Module:
    """Build the norm of that kind; RMSNorm has no bias."""
    return RMSNorm(dim, eps=eps) if kind == "rms" else LayerNorm(dim, eps=eps, bias=bias)


def _rms_norm(x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    compute = _at_least_float32(x)
    return F.rms_norm(x.to(compute), x.shape[-1:], None if weight is None else weight.to(compute), eps)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
