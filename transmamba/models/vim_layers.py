"""Options of Vim's layers besides scanning: rotation of the tokens by their places, and layers in pairs."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.nn import MambaBlock
from transmamba.ops import ScanOrder
from transmamba.ops.orders import Grid

Turns = Literal["stream", "output", "none"]


class GridRotation(nn.Module):
    """Neighbouring channels turned by the row of a token (first half of the channels) and by its column.

    Args:
        dim: width of the tokens.
        grid: rows and columns of patches; as many rows as columns.
        trained: side of the grid to which the angles are scaled.

    Raises:
        ValueError: `dim` is not a multiple of 4, or the grid is not a square; on the call, there are more tokens than
            cells and one.

    Reference:
        EVA-02, arXiv 2303.11331, as the code of Vim uses it: of an odd number of tokens the first is left alone,
        wherever the class token stands, and all others count as the cells in raster order.
    """

    @typed
    def __init__(self, dim: int, grid: Grid, *, trained: int = 14) -> None:
        super().__init__()
        check_sizes(dim=dim, trained=trained)
        if dim % 4 or grid[0] != grid[1]:
            raise ValueError(f"turning needs a width that is a multiple of 4 and a square grid, got {dim} and {grid}")
        self.side, self.trained = grid[0], trained
        for name in ("freqs_cos", "freqs_sin"):
            self.register_buffer(name, torch.empty(grid[0] * grid[1], dim))
        self.freqs_cos: Tensor
        self.freqs_sin: Tensor
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Compute the tables again."""
        cells, dim = self.freqs_cos.shape
        device = self.freqs_cos.device
        frequencies = 1 / 10000 ** (torch.arange(0, dim // 2, 2, device=device).float() / (dim // 2))
        places = torch.arange(self.side, device=device) / self.side * self.trained
        line = (places[:, None] * frequencies).repeat_interleave(2, 1)
        rows, columns = line[:, None].expand(-1, self.side, -1), line.expand(self.side, -1, -1)
        angles = torch.cat([rows, columns], -1).reshape(cells, dim)
        self.freqs_cos.copy_(angles.cos())
        self.freqs_sin.copy_(angles.sin())

    @typed
    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return the tokens turned."""
        alone = x.shape[1] % 2
        cells = x[:, alone:]
        if cells.shape[1] != len(self.freqs_cos):
            raise ValueError(
                f"{x.shape[1]} tokens cannot be turned: expected the {len(self.freqs_cos)} cells of the grid, after "
                "one other token if their number is odd"
            )
        even, odd = cells.unflatten(-1, (-1, 2)).unbind(-1)
        crossed = torch.stack([-odd, even], -1).flatten(-2)
        turned = cells * self.freqs_cos.to(x.dtype) + crossed * self.freqs_sin.to(x.dtype)
        return torch.cat([x[:, :alone], turned], 1)


class VimBlock(MambaBlock):
    """A Mamba block without MLP whose stream, or output, is turned.

    Args:
        dim: width of the tokens.
        mixer: see `MambaBlock`.
        turns: the "stream" before the block, its "output" before it is added, or "none".
        options: `norm` and `drop_path` of `MambaBlock`.
    """

    @typed
    def __init__(self, dim: int, mixer: nn.Module, *, turns: Turns = "none", **options: Any) -> None:
        super().__init__(dim, mixer, mlp=False, **options)
        self.turns = turns

    def forward(  # type: ignore[override]
        self, x: Tensor, orders: Sequence[ScanOrder] | None = None, rotation: GridRotation | None = None
    ) -> Tensor:
        """Return the stream after the block."""
        x = self._turned(x, rotation, "stream")
        return x + self.drop_path(self._turned(self.mixer(self.norm1(x), orders), rotation, "output"))

    def forward_directions(  # type: ignore[override]
        self, x: Tensor, orders: Sequence[ScanOrder] | None = None, rotation: GridRotation | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the stream after the block, and each direction's addition to it in natural token order."""
        x = self._turned(x, rotation, "stream")
        mixed, shares = self.mixer.forward_directions(self.norm1(x), orders)
        shares = torch.stack([self._turned(part, rotation, "output") for part in shares])
        return x + self.drop_path(self._turned(mixed, rotation, "output")), shares

    def _turned(self, x: Tensor, rotation: GridRotation | None, what: Turns) -> Tensor:
        return rotation(x) if rotation is not None and self.turns == what else x


class VimPair(nn.Module):
    """Two blocks that read the same stream, the second one from its end; their results are added.

    The stream itself is thus doubled by every pair, as in the official code.
    """

    def __init__(self, there: VimBlock, back: VimBlock) -> None:
        super().__init__()
        self.there, self.back = there, back

    def forward(self, x: Tensor, orders: Sequence[ScanOrder], rotation: GridRotation | None = None) -> Tensor:
        """Return the stream after the pair; the second half of the orders is for the block that reads backwards."""
        half = len(orders) // 2
        return self.there(x, orders[:half], rotation) + self.back(x, orders[half:], rotation)

    def forward_directions(
        self, x: Tensor, orders: Sequence[ScanOrder], rotation: GridRotation | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the stream after the pair, and the additions of each direction of both blocks."""
        half = len(orders) // 2
        there, shares = self.there.forward_directions(x, orders[:half], rotation)
        back, more = self.back.forward_directions(x, orders[half:], rotation)
        return there + back, torch.cat([shares, more])
