"""From clips to tokens."""

from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.ops.orders import Grid


class TubeletEmbed(nn.Module):
    """Cut a clip into boxes of some frames and a square of pixels, and project each to a token.

    Args:
        dim: width of a token.
        tubelet: frames of a box.
        patch_size: side of its square in pixels.
        in_chans: channels of a frame.

    Raises:
        ValueError: on the call, if the boxes do not tile the clip.

    Example:
        >>> import torch
        >>> TubeletEmbed(6, tubelet=2, patch_size=4)(torch.zeros(2, 3, 4, 8, 12)).shape
        torch.Size([2, 12, 6])
    """

    @typed
    def __init__(self, dim: int, *, tubelet: int = 1, patch_size: int = 16, in_chans: int = 3) -> None:
        super().__init__()
        check_sizes(dim=dim, tubelet=tubelet, patch_size=patch_size, in_chans=in_chans)
        self.sides = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, dim, self.sides, self.sides)

    def grid(self, *sizes: int) -> Grid:
        """Return the frames, rows and columns of tokens for a clip of so many frames, rows and columns of pixels."""
        if any(size < side or size % side for size, side in zip(sizes, self.sides, strict=True)):
            raise ValueError(f"boxes of {self.sides} frames, rows, columns do not tile a clip of {sizes}")
        frames, rows, columns = (size // side for size, side in zip(sizes, self.sides, strict=True))
        return frames, rows, columns

    @typed
    def forward(self, clip: Float[Tensor, "batch channel frame height width"]) -> Float[Tensor, "batch token dim"]:
        """Return the tokens of the clip: frames outermost, then rows."""
        check_width(clip, self.proj.in_channels, "clip", axis=1)
        self.grid(*clip.shape[-3:])
        return self.proj(clip).flatten(2).transpose(1, 2)
