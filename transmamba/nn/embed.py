"""From pixels to tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.ops.orders import Grid


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each to a token, rows first.

    Args:
        dim: width of a token.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        stride: distance between patches; `patch_size` by default, smaller ones overlap.
        bias: bias of the projection.

    Raises:
        ValueError: on the call, if the image is smaller than a patch or the patches do not tile it.

    Example:
        >>> PatchEmbed(6, patch_size=4)(torch.zeros(2, 3, 8, 12)).shape
        torch.Size([2, 6, 6])
    """

    @typed
    def __init__(
        self, dim: int, *, patch_size: int = 16, in_chans: int = 3, stride: int | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, patch_size=patch_size, in_chans=in_chans, stride=stride)
        self.patch_size, self.stride = patch_size, stride or patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, self.stride, bias=bias)

    def grid(self, height: int, width: int) -> Grid:
        """Return the rows and columns of tokens for an image of that size in pixels."""
        for side in (height, width):
            if side < self.patch_size or (side - self.patch_size) % self.stride:
                raise ValueError(
                    f"patches of {self.patch_size} pixels every {self.stride} do not tile an image of "
                    f"{height} x {width}: resize it or choose another patch_size"
                )
        return (height - self.patch_size) // self.stride + 1, (width - self.patch_size) // self.stride + 1

    @typed
    def forward(self, image: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch token dim"]:
        """Return the tokens of the image in raster order."""
        check_width(image, self.proj.in_channels, "image", axis=1)
        self.grid(*image.shape[-2:])
        return self.proj(image).flatten(2).transpose(1, 2)


def image_sides(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and width of an image in pixels; one number stands for both."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return height, width


def check_patch_grid(patch_embed: Any, x: Tensor, grid: Grid) -> None:
    """Refuse images or clips that `patch_embed` cuts into another grid than the one a model was built for.

    Raises:
        ValueError: the grid is another one.
    """
    sizes = tuple(x.shape[2:])
    if patch_embed.grid(*sizes) != grid:
        got = f"image has {sizes} pixels" if len(sizes) == 2 else f"input has {sizes} frames and pixels"
        raise ValueError(f"built for a patch grid of {grid}, the {got}")


@typed
def init_position(positions: int, dim: int) -> nn.Parameter:
    """Create a learned position table (1, positions, dim), drawn by `draw_position`."""
    check_sizes(positions=positions, dim=dim)
    table = nn.Parameter(torch.empty(1, positions, dim))
    draw_position(table)
    return table


def draw_position(table: Tensor) -> None:
    """Fill a position table with deviation 1 / sqrt(dim), as CLIP does.

    The usual 0.02 suits wide models; in a narrow one the positions would drown in the patches for hundreds of steps.
    """
    nn.init.normal_(table, std=table.shape[-1] ** -0.5)
