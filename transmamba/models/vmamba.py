"""VMamba: a pyramid of four stages whose maps are scanned by rows and by columns, from both ends."""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.features import FeatureMethods, Features
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack, drop_path_rates, init_linear, reset_children
from transmamba.models.vmamba_block import VMambaBlock
from transmamba.nn.ss2d import SS2D
from transmamba.nn.stem import ConvNorm, PatchMerging
from transmamba.ops import ScanOrder, scan_orders
from transmamba.ops.orders import Grid

ORDERS = ("raster", "column", "raster_reverse", "column_reverse")


class Stage(nn.Module):
    """Blocks on one grid, and the module that leads to the next, coarser one."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.downsample = BlockStack(blocks), downsample


@register
class VMamba(Pretrained, FeatureMethods, nn.Module):
    """Stem, stages of blocks with a downsampling between them, LayerNorm, mean over tokens, linear head.

    Any image of at least 32 pixels a side will do.

    Args:
        dims: width of each stage.
        depths: blocks of each stage.
        stem: module from an image to a map of `dims[0]` channels.
        block: makes a block from a width and a drop path rate.
        downsample: makes a module from a map of one width to a coarser one of another width.
        orders: the scan order of each direction.
        grid: rows and columns of a learned table of positions that is added to the stem's map; none by default.
        num_classes: outputs of the head; with 0 the model returns the head's input.
        drop_path: rate at which the last block is dropped while training; it rises linearly from zero.
        norm: builds the norm after the last stage from a width.

    Raises:
        ValueError: there is not one width and depth per stage, a number is out of range, or a map does not fit `grid`.

    Reference:
        arXiv 2401.10166. Names of its checkpoints: `models.official.vmamba`.

    Example:
        >>> import torch
        >>> vmamba_v2((8, 16), (1, 1), num_classes=5)(torch.zeros(2, 3, 32, 40)).shape
        torch.Size([2, 5])
    """

    @typed
    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        stem: nn.Module,
        block: Callable[[int, float], nn.Module],
        downsample: Callable[[int, int], nn.Module],
        orders: Sequence[str] = ORDERS,
        grid: Grid | None = None,
        num_classes: int = 1000,
        drop_path: float = 0.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes or None)
        if not dims or len(dims) != len(depths):
            raise ValueError(f"expected one width and one depth per stage, got {dims} and {depths}")
        for dim, depth in zip(dims, depths, strict=True):
            check_sizes(dim=dim, depth=depth)
        self.patch_embed, self.orders = stem, tuple(orders)
        self.pos_embed = None if grid is None else nn.Parameter(torch.empty(1, dims[0], *grid))
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages: Sequence[Stage] = nn.ModuleList(  # type: ignore[assignment]
            Stage([block(dim, next(rates)) for _ in range(depth)], downsample(dim, wider) if wider else None)
            for dim, depth, wider in zip(dims, depths, [*dims[1:], None], strict=True)
        )
        self.norm = norm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    @typed
    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        tokens, grid = _tokens(self._embed(x))
        for stage in self.stages:
            tokens = stage.blocks(tokens, scan_orders(self.orders, grid, x.device), grid)
            if stage.downsample is not None:
                tokens, grid = _tokens(stage.downsample(_map(tokens, grid)))
        return self.forward_head(self.norm(tokens))

    @typed
    def forward_features(self, x: Float[Tensor, "batch channel height width"], directions: bool = False) -> Features:
        """Return the tokens of every layer, and with `directions` each direction's share of every mixer output.

        Width and grid change from stage to stage; `Features.grids` has the grid of each layer.
        """
        tokens, grid = _tokens(self._embed(x))
        layers: list[Tensor] = []
        grids: list[Grid] = []
        by_layer: list[tuple[ScanOrder, ...]] = []
        shares: list[tuple[Tensor, ...]] = [()] * len(self.orders) if directions else []
        for stage in self.stages:
            orders = scan_orders(self.orders, grid, x.device)
            streams = stage.blocks.streams(tokens, orders, grid, directions=directions)
            layers += streams.layers
            grids += [grid] * len(streams.layers)
            by_layer += [tuple(orders)] * len(streams.layers)
            shares = [before + new for before, new in zip(shares, streams.directions, strict=True)]
            tokens = layers[-1]
            if stage.downsample is not None:
                tokens, grid = _tokens(stage.downsample(_map(tokens, grid)))
        return Features(
            self.norm(tokens), tuple(layers), grid, tuple(shares), tuple(orders), (), tuple(grids), tuple(by_layer)
        )

    def stage_ends(self, depth: int) -> list[int]:
        """Return the number of the last layer of each stage."""
        return [end - 1 for end in accumulate(len(stage.blocks) for stage in self.stages)]

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, reduction and module name of each stage, by timm's keys."""
        shrinks = [self.patch_embed, *(stage.downsample for stage in self.stages[:-1])]
        reductions = accumulate(map(_stride, shrinks), operator.mul)
        widths = [next(iter(stage.blocks)).norm1.weight.numel() for stage in self.stages]
        pairs = zip(widths, reductions, strict=True)
        return [
            {"num_chs": width, "reduction": reduction, "module": f"stages.{i}"}
            for i, (width, reduction) in enumerate(pairs)
        ]

    def _embed(self, x: Tensor) -> Tensor:
        image = self.patch_embed(x)
        if self.pos_embed is not None and image.shape[2:] != self.pos_embed.shape[2:]:
            raise ValueError(
                f"the positions are for a map of {tuple(self.pos_embed.shape[2:])}, the image gives one of "
                f"{tuple(image.shape[2:])}"
            )
        return image if self.pos_embed is None else image + self.pos_embed

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        reset_children(self)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module)


def _tokens(x: Tensor) -> tuple[Tensor, Grid]:
    return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


def _stride(module: Any) -> int:
    """Return by how much a stem or downsampling shrinks a map: the strides of its convolutions and mergers."""
    return math.prod(part.stride[-1] for part in module.modules() if hasattr(part, "stride"))


def _map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)


@register
@typed
def vmamba_v0(dims: Sequence[int], depths: Sequence[int], *, d_state: int = 16, **options: Any) -> VMamba:
    """Build the first VMamba: gated mixers and no MLPs, patches without overlap, patch merging."""
    return VMamba(
        dims,
        depths,
        stem=nn.Sequential(ConvNorm(3, dims[0], kernel_size=4, stride=4)),
        block=lambda dim, rate: VMambaBlock(dim, SS2D(dim, d_state), mlp_ratio=0.0, drop_path=rate),
        downsample=PatchMerging,
        **options,
    )


@register
@typed
def vmamba_v2(
    dims: Sequence[int], depths: Sequence[int], *, d_state: int = 1, expand: float = 2.0, **options: Any
) -> VMamba:
    """Build the released VMamba: ungated mixers, one state per channel, MLPs, overlapping patches and convolutions."""
    mixer = partial(SS2D, d_state=d_state, expand=expand, conv_bias=False, gated=False)
    return VMamba(
        dims,
        depths,
        stem=overlapping_stem(3, dims[0]),
        block=lambda dim, rate: VMambaBlock(dim, mixer(dim), drop_path=rate),
        downsample=partial(ConvNorm, kernel_size=3, stride=2),
        **options,
    )


def overlapping_stem(in_chans: int, dim: int) -> nn.Sequential:
    """Build two convolutions that each halve the image; `dim` is at least 2."""
    return nn.Sequential(
        ConvNorm(in_chans, dim // 2, kernel_size=3, stride=2),
        nn.GELU(),
        ConvNorm(dim // 2, dim, kernel_size=3, stride=2),
    )
