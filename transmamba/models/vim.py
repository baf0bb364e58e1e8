"""Vim: a class token in the middle of the patches, read from both ends."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

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
from transmamba.models.vim_layers import GridRotation, Turns, VimBlock, VimPair
from transmamba.nn import MambaMixer, PatchEmbed, init_position
from transmamba.nn.embed import check_patch_grid, image_sides
from transmamba.nn.norm import RMSNorm
from transmamba.ops import ScanOrder, scan_orders

ClassTokens = Literal["middle", "first", "both", "none"]


@register
class Vim(Pretrained, FeatureMethods, nn.Module):
    """Patches around a class token, Mamba blocks that average a forward and a backward scan, a head on that token.

    Args:
        img_size: rows and columns of the image in pixels, or one number for both.
        patch_size: side of a patch in pixels.
        stride: distance between patches; `patch_size` by default.
        in_chans: channels of the image.
        num_classes: outputs of the head; with 0 the model returns the head's input.
        dim: width of the tokens.
        depth: number of blocks.
        d_state: states per channel.
        mixer: builds the mixer of a block from a width, of one direction or two; Vim's own with `d_state` by default.
        norm: builds a norm from a width.
        class_tokens: their positions: one in the "middle" or "first", one at "both" ends, whose mean is read, or
            "none".
        pooling: the head's input without a class token: the "mean" of the tokens, the "last" one, or of each class the
            "max" of its logits over the tokens.
        positions: a learned table of positions is added to the tokens.
        dropout: rate at which numbers of the tokens with their positions are dropped while training.
        drop_path: rate at which the last block is dropped while training; it rises linearly from zero.
        float32_residual: keep the stream between the blocks in float32 at least, whatever the dtype of the weights.
        turns: tokens that are rotated by their places before they go on, see `vim_layers.GridRotation`: the "stream"
            before every block, or the tokens of the stem and then the "output" of every block but the last.
        turned_grid: side of the grid to which the angles are scaled.
        paired: the blocks stand in pairs that read the same stream from both ends.

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
        mixer: Callable[[int], nn.Module] | None = None,
        norm: Callable[[int], nn.Module] = RMSNorm,
        class_tokens: ClassTokens = "middle",
        pooling: Literal["mean", "last", "max"] = "mean",
        positions: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        float32_residual: bool = True,
        turns: Turns = "none",
        turned_grid: int = 14,
        paired: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_chans=in_chans, num_classes=num_classes or None, dim=dim, depth=depth, d_state=d_state)
        if class_tokens not in get_args(ClassTokens) or pooling not in ("mean", "last", "max"):
            raise ValueError(
                f"class_tokens={class_tokens!r}, pooling={pooling!r}: expected middle, first, both or none, and mean, "
                "last or max"
            )
        self.patch_embed = PatchEmbed(dim, patch_size=patch_size, in_chans=in_chans, stride=stride)
        self.grid = self.patch_embed.grid(*image_sides(img_size))
        self.patches = self.grid[0] * self.grid[1]
        self.float32_residual, self.class_tokens, self.pooling = float32_residual, class_tokens, pooling
        for name in self._token_names():
            setattr(self, name, nn.Parameter(torch.empty(1, 1, dim)))
        count = self.patches + len(self.cls_positions)
        self.pos_embed = init_position(count, dim) if positions else None
        self.dropout = nn.Dropout(dropout)
        mixer = partial(MambaMixer, d_state=d_state, directions=2, average=True) if mixer is None else mixer
        self.turns, self.paired = turns, paired
        self.rope = None if turns == "none" else GridRotation(dim, self.grid, trained=turned_grid)
        blocks = [
            VimBlock(dim, mixer(dim), norm=norm, drop_path=rate, turns=self._turns_of(i, depth))
            for i, rate in enumerate(drop_path_rates(drop_path, depth))
        ]
        self.blocks = BlockStack(_in_pairs(blocks) if paired else blocks)
        self.norm = norm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    @property
    def cls_positions(self) -> tuple[int, ...]:
        """The places of the class tokens among the tokens, and their rows of the position table."""
        ends = (0, self.patches + 1)
        return {"middle": (self.patches // 2,), "first": (0,), "both": ends, "none": ()}[self.class_tokens]

    @property
    def cls_position(self) -> int | None:
        """The place of the class token, if there is just one."""
        return self.cls_positions[0] if len(self.cls_positions) == 1 else None

    def _token_names(self) -> tuple[str, ...]:
        return {"both": ("cls_token_head", "cls_token_tail"), "none": ()}.get(self.class_tokens, ("cls_token",))

    @typed
    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        tokens = self._embed(x)
        tokens = self.blocks(tokens, self._orders(tokens), self.rope)
        if self.cls_positions:  # the norm of the other tokens is not needed
            return self.head(self.norm(tokens[:, list(self.cls_positions)]).mean(1))
        return self.forward_head(self.norm(tokens))

    def forward_head(self, features: Features | Tensor, pre_logits: bool = False) -> Tensor:
        """Compute the result of `forward` from that of `forward_features`, or from its `last`.

        Args:
            features: of this model.
            pre_logits: leave the head out, and return its input: one vector, or with pooling="max" all tokens.
        """
        logits = super().forward_head(features, pre_logits)
        return logits.amax(1) if logits.dim() == 3 and not pre_logits else logits

    def pool_tokens(self, last: Tensor) -> Tensor:
        """Return the class token, the mean of two, or without one the tokens by `pooling`; all tokens for "max"."""
        if self.cls_positions:
            return last[:, list(self.cls_positions)].mean(1)
        if self.pooling == "max":
            return last
        return last[:, -1] if self.pooling == "last" else last.mean(1)

    @typed
    def forward_features(self, x: Float[Tensor, "batch channel height width"], directions: bool = False) -> Features:
        """Return the tokens of every layer, and with `directions` each direction's share of every mixer output."""
        tokens = self._embed(x)
        orders = self._orders(tokens)
        layers, shares = self.blocks.streams(tokens, orders, self.rope, directions=directions)
        return Features(self.norm(layers[-1]), layers, self.grid, shares, tuple(orders), self.extra_tokens)

    @property
    def extra_tokens(self) -> tuple[int, ...]:
        """The positions of the class tokens."""
        return self.cls_positions

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimiser should not shrink."""
        return undecayed(self, *self._token_names())

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        reset_children(self)
        init_patches(self.patch_embed.proj)
        for table in (*(getattr(self, name) for name in self._token_names()), self.pos_embed):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)
        blocks = self._single_blocks()
        for block in blocks:
            shrink_output(block.mixer.out_proj, len(blocks))
        init_head(self.head)

    def _orders(self, tokens: Tensor) -> list[ScanOrder]:
        names = ("forward", "backward")[: self._single_blocks()[0].mixer.directions]
        if self.paired:
            names += ("backward", "forward")[: len(names)]
        return scan_orders(names, tokens.shape[1], tokens.device)

    def _single_blocks(self) -> list[VimBlock]:
        return [block for block in self.blocks.modules() if isinstance(block, VimBlock)]

    def _turns_of(self, i: int, depth: int) -> Turns:
        last = depth - 2 if self.paired else depth - 1
        return "none" if self.turns == "output" and i >= last else self.turns

    def _embed(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        check_patch_grid(self.patch_embed, x, self.grid)
        own = [getattr(self, name).expand(x.shape[0], -1, -1) for name in self._token_names()]
        first = self.cls_positions[0] if self.cls_positions else self.patches
        tokens = torch.cat([patches[:, :first], *own[:1], patches[:, first:], *own[1:]], 1)
        tokens = tokens if self.pos_embed is None else self.dropout(tokens + self.pos_embed)
        if self.rope is not None and self.turns == "output":
            tokens = self.rope(tokens)
        return tokens.to(torch.promote_types(tokens.dtype, torch.float32)) if self.float32_residual else tokens


def _in_pairs(blocks: list[VimBlock]) -> list[VimPair]:
    if len(blocks) % 2:
        raise ValueError(f"blocks in pairs are an even number, got depth={len(blocks)}")
    return [VimPair(there, back) for there, back in zip(blocks[::2], blocks[1::2], strict=True)]


@register
def vim_tiny(**options: Any) -> Vim:
    """Build Vim-Ti: 24 blocks of width 192."""
    return Vim(dim=192, depth=24, **options)


@register
def vim_small(**options: Any) -> Vim:
    """Build Vim-S: 24 blocks of width 384."""
    return Vim(dim=384, depth=24, **{"drop_path": 0.05, **options})


@register
def vim_base(**options: Any) -> Vim:
    """Build Vim-B: 24 blocks of width 768."""
    return Vim(dim=768, depth=24, **options)


@register
def vim_tiny_stride8(**options: Any) -> Vim:
    """Build Vim-Ti finetuned on patches that overlap by half."""
    return Vim(dim=192, depth=24, stride=8, **options)


@register
def vim_small_stride8(**options: Any) -> Vim:
    """Build Vim-S finetuned on patches that overlap by half."""
    return Vim(dim=384, depth=24, stride=8, **options)
