"""VideoMamba: a class token in front of the patches of an image or of all frames of a clip, read from both ends."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.features import FeatureMethods, Features, undecayed
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import (
    BlockStack,
    drop_path_rates,
    init_head,
    init_patches,
    reset_children,
    shrink_output,
)
from transmamba.nn import MambaBlock, MambaMixer, PatchEmbed
from transmamba.nn.embed import check_patch_grid, image_sides
from transmamba.nn.norm import RMSNorm
from transmamba.nn.tubelet import TubeletEmbed
from transmamba.ops import ScanOrder, scan_orders

ImageOrClip = Float[Tensor, "batch channel height width"] | Float[Tensor, "batch channel frame height width"]


@register
class VideoMamba(Pretrained, FeatureMethods, nn.Module):
    """Class token and patches, position tables, Mamba blocks scanned forward and backward, a head on the class token.

    The class token comes first: in the last block only the backward scan brings anything to it.

    Args:
        img_size: rows and columns of a frame in pixels, or one number for both.
        patch_size: side of a patch in pixels.
        stride: distance between the patches of an image; `patch_size` by default.
        num_frames: frames of a clip; None takes images instead.
        tubelet: frames of a patch.
        in_chans: channels of a frame.
        num_classes: outputs of the head; 0 leaves the class token as it is.
        dim: width of the tokens.
        depth: number of blocks.
        mlp: blocks of the transfer's student, LayerNorm and an MLP half, which a Transformer's weights fit; the
            published ones have RMSNorm and no MLP.
        mixer: builds the mixer of a block from a width, of one direction or two; `MambaMixer` of two by default.
        norm: builds a norm from a width; LayerNorm by default with `mlp`, RMSNorm without.
        dropout: rate at which numbers of the tokens with their positions are dropped while training.
        head_dropout: rate at which numbers are dropped before the head while training.
        drop_path: rate at which the last block is dropped while training; it rises linearly from zero.
        float32_residual: keep the stream between the blocks in float32 at least, whatever the dtype of the weights.

    Raises:
        ValueError: the patches do not tile the frames, or those of clips are to overlap; on the call, the input has
            another size.

    Reference:
        arXiv 2403.06977. Names of its checkpoints: `models.official.video_mamba`. Step sizes start as Mamba's do, which
        the official initialisation overwrites.

    Example:
        >>> VideoMamba(8, 4, num_frames=3, dim=12, depth=2, num_classes=5)(torch.zeros(2, 3, 3, 8, 8)).shape
        torch.Size([2, 5])
    """

    @typed
    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        *,
        stride: int | None = None,
        num_frames: int | None = None,
        tubelet: int = 1,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 24,
        mlp: bool = False,
        mixer: Callable[[int], nn.Module] | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        dropout: float = 0.0,
        head_dropout: float = 0.0,
        drop_path: float = 0.0,
        float32_residual: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(num_frames=num_frames, in_chans=in_chans, dim=dim, depth=depth)
        self.patch_embed: Any
        sizes = image_sides(img_size)
        if num_frames is None:
            self.patch_embed = PatchEmbed(dim, patch_size=patch_size, in_chans=in_chans, stride=stride)
            self.grid = self.patch_embed.grid(*sizes)
        elif stride not in (None, patch_size):
            raise ValueError(f"the patches of clips do not overlap: expected stride={patch_size} or None, got {stride}")
        else:
            self.patch_embed = TubeletEmbed(dim, tubelet=tubelet, patch_size=patch_size, in_chans=in_chans)
            self.grid = self.patch_embed.grid(num_frames, *sizes)
        rows, columns = self.grid[-2:]
        self.float32_residual = float32_residual
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, dim))
        self.temporal_pos_embed = None if num_frames is None else nn.Parameter(torch.empty(1, self.grid[0], dim))
        self.dropout, self.head_dropout = nn.Dropout(dropout), nn.Dropout(head_dropout)
        norm = norm or (nn.LayerNorm if mlp else RMSNorm)
        mixer = mixer or partial(MambaMixer, directions=2)
        self.blocks = BlockStack(
            MambaBlock(dim, mixer(dim), mlp=mlp, norm=norm, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = norm(dim)
        check_sizes(num_classes=num_classes or None)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    @typed
    def forward(self, x: ImageOrClip) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        tokens = self.embed(x)
        tokens = self.blocks(tokens, self._orders(tokens))
        return self.head(self.head_dropout(self.norm(tokens[:, 0])))

    def pool_tokens(self, last: Tensor) -> Tensor:
        """Return the class token, some of its numbers dropped while training."""
        return self.head_dropout(last[:, 0])

    @typed
    def forward_features(self, x: ImageOrClip, directions: bool = False) -> Features:
        """Return the tokens of every layer, and with `directions` each direction's share of every mixer output."""
        tokens = self.embed(x)
        orders = self._orders(tokens)
        layers, shares = self.blocks.streams(tokens, orders, directions=directions)
        return Features(self.norm(layers[-1]), layers, self.grid, shares, tuple(orders), self.extra_tokens)

    @property
    def extra_tokens(self) -> tuple[int, ...]:
        """The position of the class token."""
        return (0,)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimiser should not shrink."""
        return undecayed(self, "cls_token")

    def reset_parameters(self) -> None:
        """Draw the initial values again; frames start without a position of their own."""
        reset_children(self)
        init_patches(self.patch_embed.proj)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.temporal_pos_embed is not None:
            nn.init.zeros_(self.temporal_pos_embed)
        for block in self.blocks:
            shrink_output(block.mixer.out_proj, len(self.blocks))
        init_head(self.head)

    def embed(self, x: Tensor) -> Tensor:
        """Return the class token and the patches of an image or clip, with their positions.

        Raises:
            ValueError: the grid of patches is not that of the position table.
        """
        check_patch_grid(self.patch_embed, x, self.grid)
        return self.place(self.patch_embed(x), self.temporal_pos_embed)

    def _orders(self, tokens: Tensor) -> list[ScanOrder]:
        mixer: Any = self.blocks[0].mixer
        names = ("forward", "backward")[: mixer.directions]
        return scan_orders(names, tokens.shape[1], tokens.device)

    def place(self, patches: Tensor, temporal_pos_embed: Tensor | None) -> Tensor:
        """Make tokens from the projected patches of one frame, or of as many frames as the table has rows."""
        in_frame = self.pos_embed[:, None, 1:]
        if temporal_pos_embed is not None:
            in_frame = in_frame + temporal_pos_embed[:, :, None]
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        tokens = self.dropout(torch.cat([cls_token, patches + in_frame.flatten(1, 2)], 1))
        return tokens.to(torch.promote_types(tokens.dtype, torch.float32)) if self.float32_residual else tokens


@register
def video_mamba_tiny(**options: Any) -> VideoMamba:
    """Build VideoMamba-Ti: 24 blocks of width 192."""
    return VideoMamba(dim=192, depth=24, **options)


@register
def video_mamba_small(**options: Any) -> VideoMamba:
    """Build VideoMamba-S: 24 blocks of width 384."""
    return VideoMamba(dim=384, depth=24, **options)


@register
def video_mamba_middle(**options: Any) -> VideoMamba:
    """Build VideoMamba-M: 32 blocks of width 576."""
    return VideoMamba(dim=576, depth=32, **options)


@register
def video_mamba_base(**options: Any) -> VideoMamba:
    """Build VideoMamba-B: 24 blocks of width 768."""
    return VideoMamba(dim=768, depth=24, **options)
