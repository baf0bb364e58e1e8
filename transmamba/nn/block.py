"""The residual block of the paper: a Transformer block with the attention swapped for a state-space mixer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, scaled_size, typed
from transmamba.nn.activation import ACTIVATIONS
from transmamba.nn.activation import Activation as Activation
from transmamba.nn.mamba import MambaMixer
from transmamba.ops import ScanOrder


class Mlp(nn.Module):
    """fc1, activation, fc2: the MLP of ViT, by timm's names.

    Args:
        dim: width of the tokens.
        hidden_dim: hidden width.
        activation: "gelu" is exact, "gelu_tanh" its approximation by tanh, "quick_gelu" x sigmoid(1.702 x), "relu2"
            the square of relu.
        bias: bias of both layers.
        dropout: rate at which numbers are dropped while training, after the activation and at the end.
    """

    @typed
    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        activation: Activation = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, hidden_dim=hidden_dim)
        self.activation, self.dropout = activation, nn.Dropout(dropout)
        self.fc1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)

    @typed
    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Map each token by itself."""
        check_width(x, self.fc1.in_features)
        return self.dropout(self.fc2(self.dropout(ACTIVATIONS[self.activation](self.fc1(x)))))


class GatedMlp(nn.Module):
    """fc2(value activation(gate)) with value and gate the halves of fc1.

    Args:
        dim: width of the tokens.
        hidden_dim: hidden width, rounded up to a multiple of `multiple`.
        multiple: 128 as in mamba_ssm; 1 takes the width as it is.
        activation: of the gate, as for `Mlp`.
        bias: bias of both layers.
        dropout: rate at which numbers of the output are dropped while training.
    """

    @typed
    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        multiple: int = 128,
        activation: Activation = "silu",
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, hidden_dim=hidden_dim, multiple=multiple)
        hidden_dim = -(-hidden_dim // multiple) * multiple
        self.activation, self.dropout = activation, nn.Dropout(dropout)
        self.fc1 = nn.Linear(dim, 2 * hidden_dim, bias=bias)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)

    @typed
    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Map each token by itself."""
        check_width(x, self.fc1.in_features)
        value, gate = self.fc1(x).chunk(2, -1)
        return self.dropout(self.fc2(value * ACTIVATIONS[self.activation](gate)))


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training, and scale the others up.

    Raises:
        ValueError: `rate` is not in [0, 1).
    """

    @typed
    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    @typed
    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Drop whole samples at random in training; return `x` as it is outside training."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *(1,) * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)

    def extra_repr(self) -> str:
        """Return the rate."""
        return f"rate={self.rate}"


class MambaBlock(nn.Module):
    """x + mixer(norm1(x)), then x + mlp(norm2(x)).

    Args:
        dim: width of the tokens.
        mixer: any module called as `mixer(x, orders, mask)`; a forward `MambaMixer(dim)` by default.
        mlp: with the second half; without it the block is a plain Mamba block.
        mlp_ratio: hidden width of the MLP as a multiple of `dim`.
        norm: builds a normalisation from a width. The paper replaces Mamba's RMSNorm by LayerNorm, so that a
            Transformer's norms can be inherited.
        drop_path: rate at which each residual branch is dropped.

    Reference:
        Section on weight subcloning of arXiv 2502.15130: LN-SSM-residual, LN-MLP-residual.

    Example:
        >>> MambaBlock(8, MambaMixer(8, directions=2))(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    @typed
    def __init__(
        self,
        dim: int,
        mixer: nn.Module | None = None,
        *,
        mlp: bool = True,
        mlp_ratio: float = 4.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.dim = dim
        self.norm1 = norm(dim)
        self.mixer: Any = mixer if mixer is not None else MambaMixer(dim)
        self.norm2 = norm(dim) if mlp else None
        self.mlp = Mlp(dim, scaled_size(dim, mlp_ratio, "mlp_ratio")) if mlp else None
        self.drop_path = DropPath(drop_path)

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Return the stream after the block. `orders` and `mask` are the mixer's."""
        check_width(x, self.dim)
        return self._feed_forward(x + self.drop_path(self.mixer(self.norm1(x), orders, mask)))

    def forward_directions(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the stream after the block, and the mixer's output split by direction in natural token order."""
        mixed, shares = self.mixer.forward_directions(self.norm1(x), orders, mask)
        return self._feed_forward(x + self.drop_path(mixed)), shares

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.norm2 is None or self.mlp is None:
            return x
        return x + self.drop_path(self.mlp(self.norm2(x)))
