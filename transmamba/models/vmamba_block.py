"""The block of VMamba."""

from collections.abc import Callable, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import scaled_size, typed
from transmamba.nn import DropPath, GatedMlp, Mlp
from transmamba.nn.activation import Activation
from transmamba.nn.ss2d import SS2D
from transmamba.ops import ScanOrder
from transmamba.ops.orders import Grid


class VMambaBlock(nn.Module):
    """x + mixer(norm1(x)), then, if `mlp_ratio` is positive, x + mlp(norm2(x))."""

    def __init__(
        self,
        dim: int,
        mixer: SS2D,
        *,
        mlp_ratio: float = 4.0,
        activation: Activation = "gelu",
        gated: bool = False,
        drop_path: float = 0.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        mlp_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.mixer = mixer
        self.norm2 = norm(dim) if mlp_ratio > 0 else None
        self.mlp: Mlp | GatedMlp | None = None
        if mlp_ratio > 0:
            build = partial(GatedMlp, multiple=1, bias=True) if gated else Mlp
            hidden_dim = scaled_size(dim, mlp_ratio, "mlp_ratio")
            self.mlp = build(dim, hidden_dim, activation=activation, dropout=mlp_dropout)
        self.drop_path = DropPath(drop_path)

    @typed
    def forward(
        self, x: Float[Tensor, "batch token dim"], orders: Sequence[ScanOrder], grid: Grid
    ) -> Float[Tensor, "batch token dim"]:
        """Return the stream after the block."""
        return self._feed_forward(x + self.drop_path(self.mixer(self.norm1(x), orders, grid)))

    def forward_directions(
        self, x: Tensor, orders: Sequence[ScanOrder], grid: Grid
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the stream after the block, and the mixer's output split by direction, in natural token order."""
        mixed, shares = self.mixer.forward_directions(self.norm1(x), orders, grid)
        return self._feed_forward(x + self.drop_path(mixed)), shares

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.norm2 is None or self.mlp is None:
            return x
        return x + self.drop_path(self.mlp(self.norm2(x)))
