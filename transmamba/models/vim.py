"""Vim: a class token in the middle of the patches, read from both ends."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.features import Features, select_layers
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import (
    BlockStack,
    drop_path_rates,
    init_linear,
    init_patches,
    reset_children,
    shrink_output,
)
from transmamba.nn import MambaBlock, MambaMixer, PatchEmbed, init_position
from transmamba.nn.norm import RMSNorm
from transmamba.ops import scan_orders


@register
class Vim(Pretrained, nn.Module):
    """Patches around a class token, Mamba blocks that average a forward and a backward scan, a head on that token.

    Args:
        img_size: rows and columns of the image in pixels, or one number for both.
        patch_size: side of a patch in pixels.
        stride: distance between patches; `patch_size` by default.
        in_chans: channels of the image.
        num_classes: outputs of the head.
        dim: width of the tokens.
        depth: number of blocks.
        d_state: states per channel.
        drop_path: rate at which the last block is dropped while training; it rises linearly from zero.
        float32_residual: keep the stream between the blocks in float32 at least, whatever the dtype of the weights.

    Raises:
        ValueError: the patches do not tile the image; on the call, the image has another size.

    Reference:
        arXiv 2401.09417. Names of its checkpoints: `models.official.vim`.

    Example:
        >>> Vim(8, 4, dim=12, depth=2, num_classes=5)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 5])
    """

    @typed
    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        *,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        drop_path: float = 0.0,
        float32_residual: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(in_chans=in_chans, num_classes=num_classes, dim=dim, depth=depth, d_state=d_state)
        self.patch_embed = PatchEmbed(dim, patch_size=patch_size, in_chans=in_chans, stride=stride)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid = self.patch_embed.grid(height, width)
        self.patches = self.grid[0] * self.grid[1]
        self.float32_residual = float32_residual
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = init_position(self.patches + 1, dim)
        self.blocks = BlockStack(
            MambaBlock(
                dim, MambaMixer(dim, d_state, directions=2, average=True), mlp=False, norm=RMSNorm, drop_path=rate
            )
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.reset_parameters()

    @property
    def cls_position(self) -> int:
        """The class token's place among the tokens, and its row of the position table."""
        return self.patches // 2

    @typed
    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        tokens = self._embed(x)
        tokens = self.blocks(tokens, scan_orders(("forward", "backward"), tokens.shape[1], x.device))
        return self.head(self.norm(tokens[:, self.cls_position]))

    @typed
    def forward_features(self, x: Float[Tensor, "batch channel height width"], directions: bool = False) -> Features:
        """Tokens of every layer, and with `directions` each direction's share of every mixer output."""
        tokens = self._embed(x)
        orders = scan_orders(("forward", "backward"), tokens.shape[1], x.device)
        layers, shares = self.blocks.streams(tokens, orders, directions=directions)
        return Features(self.norm(layers[-1]), layers, self.grid, shares, tuple(orders), (self.cls_position,))

    def forward_intermediates(
        self, x: Float[Tensor, "batch channel height width"], indices: int | list[int] | None = None
    ) -> tuple[Float[Tensor, "batch token dim"], list[Float[Tensor, "batch token dim"]]]:
        """The final tokens and the stream after the chosen blocks: None all, n the last n, or a list."""
        features = self.forward_features(x)
        return features.last, select_layers(features.layers, indices)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not shrink."""
        spared = ("pos_embed", "cls_token", "A_log", ".D", "dt_bias")
        return {name for name, _ in self.named_parameters() if name.endswith(spared)}

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        reset_children(self)
        init_patches(self.patch_embed.proj)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            shrink_output(block.mixer.out_proj, len(self.blocks))
        init_linear(self.head)

    def _embed(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        if self.patch_embed.grid(*x.shape[-2:]) != self.grid:
            raise ValueError(f"built for a patch grid of {self.grid}, the image has {tuple(x.shape[-2:])} pixels")
        before, after = patches.split([self.cls_position, self.patches - self.cls_position], 1)
        tokens = torch.cat([before, self.cls_token.expand(x.shape[0], -1, -1), after], 1) + self.pos_embed
        return tokens.to(torch.promote_types(tokens.dtype, torch.float32)) if self.float32_residual else tokens


@register
def vim_tiny(**options: Any) -> Vim:
    """Vim-Ti: 24 blocks of width 192."""
    return Vim(dim=192, depth=24, **options)


@register
def vim_small(**options: Any) -> Vim:
    """Vim-S: 24 blocks of width 384."""
    return Vim(dim=384, depth=24, **{"drop_path": 0.05, **options})


@register
def vim_base(**options: Any) -> Vim:
    """Vim-B: 24 blocks of width 768."""
    return Vim(dim=768, depth=24, **options)


@register
def vim_tiny_stride8(**options: Any) -> Vim:
    """Vim-Ti finetuned on patches that overlap by half."""
    return Vim(dim=192, depth=24, stride=8, **options)


@register
def vim_small_stride8(**options: Any) -> Vim:
    """Vim-S finetuned on patches that overlap by half."""
    return Vim(dim=384, depth=24, stride=8, **options)
