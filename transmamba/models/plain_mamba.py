"""PlainMamba: a stack of convolutions as stem, four snakes through the tokens, one state space for all of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.features import FeatureMethods, Features, undecayed
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import (
    BlockStack,
    Builders,
    drop_path_rates,
    init_head,
    init_linear,
    per_layer,
    reset_children,
)
from transmamba.models.vision_mamba import SNAKES
from transmamba.nn import DropPath
from transmamba.nn.embed import image_sides
from transmamba.nn.plain_mamba import PlainMambaMixer, moves_between
from transmamba.nn.position import resize_position
from transmamba.nn.stem import ConvStem
from transmamba.ops import ScanOrder, scan_orders
from transmamba.ops.orders import Grid


class LocalConv(nn.Module):
    """A depthwise 3 x 3 convolution, batch norm and GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)

    @typed
    def forward(self, x: Float[Tensor, "batch token dim"], grid: Grid) -> Float[Tensor, "batch token dim"]:
        """Mix neighbours."""
        y = self.conv(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        # over a plain list of tokens: torch's gradient of a map's batch norm is wrong on a CPU for a batch of one whose
        # gradient has another memory layout
        return F.gelu(self.norm(y.flatten(0, 1)).view_as(y))


class PlainMambaBlock(nn.Module):
    """x + mixer(norm1(x)), then, if there is one, a depthwise convolution that replaces x."""

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        drop_path: float = 0.0,
        convolved: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.mixer: Any = mixer
        self.drop_path = DropPath(drop_path)
        self.local = LocalConv(dim) if convolved else None

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder],
        moves: Int[Tensor, "direction token"],
        grid: Grid,
    ) -> Float[Tensor, "batch token dim"]:
        """Return the stream after the block."""
        return self._convolve(x + self.drop_path(self.mixer(self.norm1(x), orders, moves, grid)), grid)

    def forward_directions(
        self, x: Tensor, orders: Sequence[ScanOrder], moves: Tensor, grid: Grid
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the stream after the block, and the mixer's output split by order, in natural token order."""
        mixed, shares = self.mixer.forward_directions(self.norm1(x), orders, moves, grid)
        return self._convolve(x + self.drop_path(mixed), grid), shares

    def _convolve(self, x: Tensor, grid: Grid) -> Tensor:
        if self.local is None:
            return x
        return self.local(x, grid)


@register
class PlainMamba(Pretrained, FeatureMethods, nn.Module):
    """Convolutional stem, position table, Mamba blocks along four snakes, LayerNorm, mean over tokens, linear head.

    The image may have another size than `img_size`: the position table is resized on the way.

    Args:
        img_size: rows and columns in pixels of the image the position table is for, or one number for both.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        num_classes: outputs of the head; with 0 the model returns the head's input.
        dim: width of the tokens.
        depth: number of blocks.
        d_state: states per channel.
        mixer: builds the mixer of a block from a width, or one builder per block; a `PlainMambaMixer` with
            `d_state` and `released_scan` by default.
        norm: builds the norm of a block from a width; or one builder per block.
        last_norm: builds the one after the blocks; a LayerNorm of epsilon 1e-6 by default.
        positions: a learned table of positions is added to the tokens.
        dropout: rate at which numbers of the tokens with their positions are dropped while training.
        num_stem_convs: 3 x 3 convolutions in the stem.
        conv_layers: numbers of the blocks that end in a depthwise convolution.
        drop_path: rate at which the last block is dropped while training; it rises linearly from zero.
        released_scan: the scan of the released checkpoints, see `PlainMambaMixer`; wrong as a design.
        resizing: how the table of positions is resized for an image of another size.

    Reference:
        arXiv 2403.17695. Names of its checkpoints: `models.official.plain_mamba`. Step sizes start as Mamba's do, which
        the official initialisation overwrites.

    Example:
        >>> PlainMamba(8, 4, dim=12, depth=2, num_classes=5)(torch.zeros(2, 3, 8, 10)).shape
        torch.Size([2, 5])
    """

    @typed
    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        mixer: Builders | None = None,
        norm: Builders = nn.LayerNorm,
        last_norm: Callable[[int], nn.Module] | None = None,
        positions: bool = True,
        dropout: float = 0.0,
        num_stem_convs: int = 1,
        conv_layers: Sequence[int] = (),
        drop_path: float = 0.0,
        released_scan: bool = False,
        resizing: Literal["bicubic", "bilinear"] = "bicubic",
    ) -> None:
        super().__init__()
        check_sizes(in_chans=in_chans, num_classes=num_classes or None, dim=dim, depth=depth, d_state=d_state)
        self.patch_embed = ConvStem(dim, patch_size=patch_size, in_chans=in_chans, num_convs=num_stem_convs)
        height, width = image_sides(img_size)
        side = self.patch_embed.side
        self.grid = (-(-(height // 2) // side), -(-(width // 2) // side))  # a border is filled up to a patch
        check_sizes(rows=self.grid[0], columns=self.grid[1])
        count = self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, count, dim)) if positions else None
        self.dropout = nn.Dropout(dropout)
        mixer = partial(PlainMambaMixer, d_state=d_state, released_scan=released_scan) if mixer is None else mixer
        self.resizing = resizing
        parts = (per_layer(mixer, depth, "mixer"), per_layer(norm, depth, "norm"), drop_path_rates(drop_path, depth))
        self.blocks = BlockStack(
            PlainMambaBlock(dim, build(dim), norm=build_norm, drop_path=rate, convolved=i in conv_layers)
            for i, (build, build_norm, rate) in enumerate(zip(*parts, strict=True))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6) if last_norm is None else last_norm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    @typed
    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        tokens, grid = self._embed(x)
        orders = scan_orders(SNAKES, grid, x.device)
        tokens = self.blocks(tokens, orders, moves_between(orders, grid), grid)
        return self.forward_head(self.norm(tokens))

    @typed
    def forward_features(self, x: Float[Tensor, "batch channel height width"], directions: bool = False) -> Features:
        """Return the tokens of every layer, and with `directions` each direction's share of every mixer output."""
        tokens, grid = self._embed(x)
        orders = scan_orders(SNAKES, grid, x.device)
        layers, shares = self.blocks.streams(tokens, orders, moves_between(orders, grid), grid, directions=directions)
        return Features(self.norm(layers[-1]), layers, grid, shares, tuple(orders))

    def stream_size(self) -> tuple[int, int]:
        """Return the width of the stream, and the pixels along the side of a patch."""
        return self.patch_embed.projection.out_channels, 2 * self.patch_embed.side

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimiser should not shrink."""
        return undecayed(self, "direction_B")

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        reset_children(self)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            mixer = getattr(block.mixer, "mixer", block.mixer)  # it may be scaled
            for linear in (mixer.in_proj, mixer.ssm.x_proj, mixer.out_proj):
                init_linear(linear)
        init_head(self.head)

    def _embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        tokens = self.patch_embed(x)
        grid = (tokens.shape[2], tokens.shape[3])
        tokens = tokens.flatten(2).transpose(1, 2)
        if self.pos_embed is not None:
            tokens = tokens + resize_position(self.pos_embed, self.grid, grid, mode=self.resizing)
        return self.dropout(tokens), grid


@register
def plain_mamba_l1(**options: Any) -> PlainMamba:
    """Build PlainMamba-L1: 24 blocks of width 192."""
    return PlainMamba(dim=192, depth=24, num_stem_convs=1, conv_layers=(0,), **{"drop_path": 0.2, **options})


@register
def plain_mamba_l2(**options: Any) -> PlainMamba:
    """Build PlainMamba-L2: 24 blocks of width 384."""
    return PlainMamba(dim=384, depth=24, num_stem_convs=2, **{"drop_path": 0.2, **options})


@register
def plain_mamba_l3(**options: Any) -> PlainMamba:
    """Build PlainMamba-L3: 36 blocks of width 448."""
    return PlainMamba(dim=448, depth=36, num_stem_convs=2, **{"drop_path": 0.4, **options})


@register
def plain_mamba_tiny(**options: Any) -> PlainMamba:
    """Build PMamba-T of the TransMamba paper: 12 blocks of width 192."""
    return PlainMamba(dim=192, depth=12, num_stem_convs=2, **options)


@register
def plain_mamba_small(**options: Any) -> PlainMamba:
    """Build PMamba-S of the TransMamba paper: 12 blocks of width 384."""
    return PlainMamba(dim=384, depth=12, num_stem_convs=2, **options)


@register
def plain_mamba_base(**options: Any) -> PlainMamba:
    """Build PMamba-B of the TransMamba paper: 12 blocks of width 768."""
    return PlainMamba(dim=768, depth=12, num_stem_convs=2, **options)
