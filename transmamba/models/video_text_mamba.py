"""The video side of VideoMamba's video-text models: a part of the tokens is encoded, pooled and aligned with CLIP."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import reset_children
from transmamba.models.video_mamba import ImageOrClip, VideoMamba
from transmamba.ops import scan_orders


class VideoText(NamedTuple):
    """Video features to compare with a text.

    Attributes:
        patches: visible patch tokens after the final norm, `(batch, patch, dim)`.
        pooled: class token plus mean of the patches, normed, `(batch, 1 or frame, dim)`.
        aligned: to compare with a CLIP teacher's tokens once both have unit length, `(batch, visible token,
            teacher_dim)`.
    """

    patches: Tensor
    pooled: Tensor
    aligned: Tensor


class ClipDecoder(nn.Module):
    """A linear map to the teacher's width and a norm."""

    def __init__(self, dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, teacher_dim)
        self.norm = nn.LayerNorm(teacher_dim)

    @typed
    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token teacher_dim"]:
        """Decode each token by itself."""
        return self.norm(self.head(x))


@register
class VideoTextMamba(Pretrained, nn.Module):
    """A clip encoder whose class token and mean patch are added, and whose last block's input is aligned with CLIP.

    Args:
        encoder: a clip model without head, `VideoMamba(num_frames=..., num_classes=0)`.
        teacher_dim: width of the teacher's features.

    Reference:
        arXiv 2403.06977, masked alignment and video-text pretraining.

    Example:
        >>> encoder = VideoMamba(8, 4, num_frames=3, dim=12, depth=2, num_classes=0)
        >>> VideoTextMamba(encoder, 5)(torch.zeros(2, 3, 3, 8, 8)).pooled.shape
        torch.Size([2, 1, 12])
    """

    @typed
    def __init__(self, encoder: VideoMamba, teacher_dim: int) -> None:
        super().__init__()
        check_sizes(teacher_dim=teacher_dim)
        self.encoder = encoder
        dim = encoder.cls_token.shape[-1]
        self.pool_norm = nn.LayerNorm(dim)
        self.decoder = ClipDecoder(dim, teacher_dim)

    @typed
    def forward(
        self, x: ImageOrClip, visible: Bool[Tensor, "batch token"] | None = None, *, per_frame: bool = False
    ) -> VideoText:
        """Encode a clip, or one image as a single frame that has no position in time.

        Args:
            x: clip or image.
            visible: tokens that are seen, the class token first; as many for each sample. All by default.
            per_frame: average the patches of each frame apart; all tokens have to be visible.

        Raises:
            ValueError: samples differ in the number of visible tokens, or `per_frame` and some are not visible.
        """
        if x.dim() == 4:
            tokens, frames = self.encoder.place(self.encoder.patch_embed(x[:, :, None]), None), 1
        else:
            tokens, frames = self.encoder.embed(x), self.encoder.grid[0]
        position = sinusoids(tokens.shape[1], tokens.shape[2], like=tokens).expand_as(tokens)
        if visible is not None:
            tokens, position = _keep(tokens, visible), _keep(position, visible)
            if per_frame:
                raise ValueError("per_frame needs every token of a frame: leave visible out")
        orders = scan_orders(("forward", "backward"), tokens.shape[1], x.device)
        layers = self.encoder.blocks.streams(tokens, orders).layers
        last = self.encoder.norm(layers[-1])
        entering = layers[-2] if len(layers) > 1 else tokens
        patches = last[:, 1:]
        mean = patches.unflatten(1, (frames if per_frame else 1, -1)).mean(2)
        aligned = self.decoder((entering + position).to(last.dtype))
        return VideoText(patches, self.pool_norm(last[:, :1] + mean), aligned)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimiser should not shrink."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        reset_children(self)


def _keep(tokens: Tensor, visible: Tensor) -> Tensor:
    counts = visible.sum(1)
    if (counts != counts[0]).any():
        raise ValueError(f"every sample needs as many visible tokens, got {counts.tolist()}")
    return tokens[visible].view(tokens.shape[0], int(counts[0]), -1)


def sinusoids(length: int, dim: int, *, like: Tensor) -> Tensor:
    """Return the fixed positions of the first Transformer, `(length, dim)`: sines and cosines alternate."""
    rate = 10000 ** (torch.arange(0, dim, device=like.device, dtype=torch.float64) // 2 * 2 / dim)
    angle = torch.arange(length, device=like.device, dtype=torch.float64)[:, None] / rate
    angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return angle.float().to(like.dtype)  # the official table is float32 whatever the model is
