"""From pixels to maps of tokens, and from maps to coarser ones; all are channel-first."""

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed

MOST_CONVS = 1000  # a larger number is a slip, and would build convolutions until the memory ends


class ConvStem(nn.Module):
    """Halve the image, refine it, and project patches of it to tokens.

    Args:
        dim: width of a token.
        patch_size: side of a patch in pixels of the image; even.
        in_chans: channels of the image.
        num_convs: 3 x 3 convolutions between halving and projecting.

    Raises:
        ValueError: `patch_size` is odd, or `num_convs` is not 0 to 1000; on the call, the image has another number
            of channels.
    """

    @typed
    def __init__(self, dim: int, *, patch_size: int = 16, in_chans: int = 3, num_convs: int = 2) -> None:
        super().__init__()
        check_sizes(dim=dim, patch_size=patch_size, in_chans=in_chans)
        if patch_size % 2:
            raise ValueError(f"the stem halves the image: patch_size must be even, got {patch_size}")
        if not 0 <= num_convs <= MOST_CONVS:
            raise ValueError(f"num_convs must be between 0 and {MOST_CONVS}, got {num_convs}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.convs = nn.Sequential()
        for _ in range(num_convs):
            self.convs.extend([nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()])
        self.in_chans, self.side = in_chans, patch_size // 2
        self.projection = nn.Conv2d(64, dim, self.side, self.side)

    @typed
    def forward(self, image: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Return a map of tokens; a border that does not fill a patch is padded with zeros, below and on the right."""
        check_width(image, self.in_chans, "image", axis=1)
        if not image.shape[2] or not image.shape[3]:
            raise ValueError(f"image has shape {tuple(image.shape)}: expected at least one pixel")
        half = self.convs(self.stem(image))
        below, right = (-side % self.side for side in half.shape[-2:])
        return self.projection(F.pad(half, (0, right, 0, below)))


class ConvNorm(nn.Module):
    """A convolution and a norm over the channels.

    Args:
        in_chans: channels of the map.
        dim: channels of the result.
        kernel_size: side of the kernel.
        stride: distance between its places.
        padding: zeros around the map; none for an even kernel, as many as centre an odd one by default.
        normed: without the norm the convolution is all there is.
        norm: builds the norm from a width, for channels last; a LayerNorm by default.
    """

    @typed
    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        kernel_size: int,
        stride: int,
        padding: int | None = None,
        normed: bool = True,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        check_sizes(in_chans=in_chans, dim=dim, kernel_size=kernel_size, stride=stride)
        # an even kernel tiles the map, an odd one is centred
        padding = (kernel_size - 1) // 2 * (kernel_size % 2) if padding is None else padding
        self.conv = nn.Conv2d(in_chans, dim, kernel_size, stride, padding=padding)
        self.channel_norm = norm(dim) if normed else nn.Identity()

    @typed
    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Return the normed map."""
        check_width(x, self.conv.in_channels, axis=1)
        check_sizes(rows=x.shape[2], columns=x.shape[3])
        return self.channel_norm(self.conv(x).movedim(1, -1)).movedim(-1, 1)


class PatchMerging(nn.Module):
    """Four neighbours become one token: a norm over all their channels, then a linear map to `dim`.

    A map with an odd side is filled up with zeros, below and on the right.
    """

    stride = (2, 2)

    @typed
    def __init__(self, in_chans: int, dim: int, *, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        check_sizes(in_chans=in_chans, dim=dim)
        self.norm = norm(4 * in_chans)
        self.reduction = nn.Linear(4 * in_chans, dim, bias=False)

    @typed
    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Return the map of half the size."""
        check_width(x, self.reduction.in_features // 4, axis=1)
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        merged = rearrange(x, "batch channel (row r) (column c) -> batch row column (c r channel)", r=2, c=2)
        return self.reduction(self.norm(merged)).movedim(-1, 1)
