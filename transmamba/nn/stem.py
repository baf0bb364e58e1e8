"""Stems of several convolutions."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import typed


class ConvStem(nn.Module):
    """Halve the image, refine it, and project patches of it to tokens.

    Args:
        dim: width of a token.
        patch_size: side of a patch in pixels of the image; even.
        in_chans: channels of the image.
        refinements: 3 x 3 convolutions between halving and projecting.
    """

    def __init__(self, dim: int, *, patch_size: int = 16, in_chans: int = 3, refinements: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.convs = nn.Sequential()
        for _ in range(refinements):
            self.convs.extend([nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()])
        self.side = patch_size // 2
        self.projection = nn.Conv2d(64, dim, self.side, self.side)

    @typed
    def forward(self, image: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """A map of tokens; a border that does not fill a patch is filled up with zeros, below and on the right."""
        half = self.convs(self.stem(image))
        below, right = (-side % self.side for side in half.shape[-2:])
        return self.projection(F.pad(half, (0, right, 0, below)))
