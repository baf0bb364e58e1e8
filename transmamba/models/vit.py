"""A Vision Transformer with timm's parameter names, of attention or of any other mixers."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.canonical_facts import read_architecture
from transmamba.models.features import FeatureMethods, Features, undecayed
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack, Builders, per_layer, reset_children
from transmamba.nn import Attention, PatchEmbed, TransformerBlock, init_position
from transmamba.nn.embed import check_patch_grid, draw_position, image_sides
from transmamba.nn.norm import build_norm
from transmamba.ops import ScanOrder, scan_orders
from transmamba.transfer.teachers.architecture import Architecture


@register
class ViT(Pretrained, FeatureMethods, nn.Module):
    """Vision Transformer; with `distilled` a DeiT, whose two heads are averaged as DeiT does for prediction.

    Tokens stand in the order class token, distillation token, registers, patches.

    Args:
        img_size: rows and columns of the image in pixels, or one number for both.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        num_classes: outputs of the head; with 0 the model returns the head's input.
        dim: width of the tokens.
        depth: number of blocks.
        heads: attention heads.
        distilled: add DeiT's distillation token and head; "token" leaves the head out.
        mixer: builds a mixer from a width, attention of `heads` heads by default; or one builder per block.
        block: builds a block from a width and a mixer, such as a `functools.partial` of `nn.TransformerBlock` with
            another MLP or other norms; or one builder per block.
        orders: scan orders of the patches, as for `VisionMamba`, for mixers that scan; attention needs none.
        prefix_scan: where an order visits the other tokens: at both "ends", which is first in an order, and last in one
            whose name ends in "reverse" or "backward"; or "first", "middle" (between the halves of the patches) or
            "last" in each. The tokens themselves keep their places.
        class_token: whether there is one.
        registers: number of register tokens.
        position_table: add a learned table of positions.
        prefix_positions: class, distillation and register tokens that have a row in the table; by default all but the
            registers.
        patch_bias: bias of the projection of patches.
        norm_pre: a norm before the first block.
        norm: kind of the norms outside the blocks.
        norm_eps: their epsilon.
        norm_bias: whether they have a bias; an RMSNorm has none.
        final_norm: a norm after the last block.
        pool: input of the head: the class token, or the mean of the patches.
        fc_norm: a norm of that.

    Raises:
        ValueError: the patches do not tile the image, the heads do not divide the width, an order does not fit the
            patch grid, or a token is to be read or to have a position that there is not.

    Reference:
        arXiv 2010.11929 and 2012.12877; state-dict keys and shapes are timm's.

    Example:
        >>> vit = ViT(img_size=8, patch_size=4, dim=12, depth=2, heads=3, num_classes=5)
        >>> vit(torch.zeros(2, 3, 8, 8)).shape
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
        depth: int = 12,
        heads: int = 3,
        distilled: bool | Literal["token"] = False,
        mixer: Builders | None = None,
        block: Builders | None = None,
        orders: Sequence[str | Sequence[int]] | None = None,
        prefix_scan: Literal["ends", "first", "middle", "last"] = "ends",
        class_token: bool = True,
        registers: int = 0,
        position_table: bool = True,
        prefix_positions: int | None = None,
        patch_bias: bool = True,
        norm_pre: bool = False,
        norm: Literal["layer", "rms"] = "layer",
        norm_eps: float = 1e-6,
        norm_bias: bool = True,
        final_norm: bool = True,
        pool: Literal["token", "mean"] = "token",
        fc_norm: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_chans=in_chans, num_classes=num_classes or None, dim=dim, depth=depth, heads=heads)
        check_sizes(registers=registers or None, prefix_positions=prefix_positions or None)
        self.patch_embed = PatchEmbed(dim, patch_size=patch_size, in_chans=in_chans, bias=patch_bias)
        self.grid = self.patch_embed.grid(*image_sides(img_size))
        self.order_specs = None if orders is None else tuple(orders)
        self.prefix, self.prefix_scan, self.pool = class_token + bool(distilled) + registers, prefix_scan, pool
        self._orders(None)  # a wrong order fails here, not at the first forward
        if not class_token and (distilled or pool == "token"):
            raise ValueError("without class token there is no distillation token, and the head reads pool='mean'")
        self.prefix_positions = self.prefix - registers if prefix_positions is None else prefix_positions
        if self.prefix_positions > self.prefix:
            raise ValueError(
                f"prefix_positions={prefix_positions}, and there are {self.prefix} tokens before the patches"
            )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if distilled else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        rows = self.prefix_positions + self.grid[0] * self.grid[1]
        self.pos_embed = init_position(rows, dim) if position_table else None

        def norm_if(wanted: bool) -> nn.Module:
            return build_norm(norm, dim, norm_eps, norm_bias) if wanted else nn.Identity()

        self.norm_pre = norm_if(norm_pre)
        mixers = per_layer(mixer or partial(Attention, heads=heads), depth, "mixer")
        blocks = per_layer(block or partial(TransformerBlock, hidden_dim=4 * dim), depth, "block")
        self.blocks = BlockStack(build(dim, mix(dim)) for build, mix in zip(blocks, mixers, strict=True))
        self.norm, self.fc_norm = norm_if(final_norm), norm_if(fc_norm)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.head_dist = nn.Linear(dim, num_classes) if distilled is True and num_classes else None
        self._init_weights()

    @typed
    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        tokens = self.norm(self.blocks(self._embed(x), self._orders(x.device)))
        return self.forward_head(tokens)

    def forward_head(self, features: Features | Tensor, pre_logits: bool = False) -> Tensor:
        """Compute the result of `forward` from that of `forward_features`, or from its `last`.

        Args:
            features: of this model.
            pre_logits: return the input of the head; with a second head, the mean of the inputs of both, as timm does.
        """
        tokens = features if isinstance(features, Tensor) else features.last
        pooled = self.pool_tokens(tokens)
        if pre_logits:
            return pooled if self.head_dist is None else (pooled + tokens[:, 1]) / 2
        logits = self.head(pooled)
        return logits if self.head_dist is None else (logits + self.head_dist(tokens[:, 1])) / 2

    def pool_tokens(self, last: Tensor) -> Tensor:
        """Return the class token or the mean of the patches, normed where the head has a norm of its own."""
        return self.fc_norm(last[:, 0] if self.pool == "token" else last[:, self.prefix :].mean(1))

    @typed
    def forward_features(self, x: Float[Tensor, "batch channel height width"], directions: bool = False) -> Features:
        """Return the tokens of every layer, class tokens in front (`Features.extra` has their positions).

        Args:
            x: images.
            directions: also return each direction's share of every mixer output.

        Raises:
            ValueError: the image has another size than the model was built for.
        """
        orders = self._orders(x.device)
        layers, shares = self.blocks.streams(self._embed(x), orders, directions=directions)
        return Features(self.norm(layers[-1]), layers, self.grid, shares, tuple(orders or ()), self.extra_tokens)

    @property
    def extra_tokens(self) -> tuple[int, ...]:
        """The positions of the class, distillation and register tokens."""
        return tuple(range(self.prefix))

    @property
    def architecture(self) -> Architecture | None:
        """Facts by which `transfer.translate` reads the model as a teacher; None if not all mixers are attention.

        Raises:
            ValueError: blocks differ in something that a canonical Transformer has one of.
        """
        return read_architecture(self, "image", grid=self.grid, pool=self.pool)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimiser should not shrink."""
        return undecayed(self, "cls_token", "dist_token", "reg_token", "relative_bias")

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        reset_children(self)
        if self.pos_embed is not None:
            draw_position(self.pos_embed)
        self._init_weights()

    def _init_weights(self) -> None:
        for token in (self.cls_token, self.dist_token):
            if token is not None:
                nn.init.zeros_(token)
        if self.reg_token is not None:  # equal ones would stay equal
            nn.init.trunc_normal_(self.reg_token, std=0.02)
        # mixers other than attention start in ways of their own
        own = (part for block in self.blocks for name, part in block.named_children() if name != "mixer")
        for module in (*own, self.head, self.head_dist):
            if module is not None:
                module.apply(init_transformer)

    def _orders(self, device: torch.device | None) -> list[ScanOrder] | None:
        """Return the scan orders over all tokens."""
        if self.order_specs is None:
            return None
        orders = scan_orders(self.order_specs, self.grid, device)
        return [self._with_prefix(order, spec) for order, spec in zip(orders, self.order_specs, strict=True)]

    def _with_prefix(self, order: ScanOrder, spec: str | Sequence[int]) -> ScanOrder:
        """Bring the tokens before the patches into an order of the patches."""
        first, patches = torch.arange(self.prefix, device=order.index.device), order.index + self.prefix
        backward = isinstance(spec, str) and spec.endswith(("reverse", "backward"))
        at_ends = len(patches) if backward else 0
        place = {"ends": at_ends, "first": 0, "middle": len(patches) // 2, "last": len(patches)}[self.prefix_scan]
        index = torch.cat([patches[:place], first.flip(0) if backward else first, patches[place:]])
        return ScanOrder(index, index.argsort())

    def _embed(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x)
        check_patch_grid(self.patch_embed, x, self.grid)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token, self.reg_token)
                  if token is not None]  # fmt: skip
        tokens = torch.cat([*prefix, tokens], 1)
        if self.pos_embed is None:
            return self.norm_pre(tokens)
        placed, table = self.prefix_positions, self.pos_embed
        if placed == self.prefix:
            return self.norm_pre(tokens + table)
        none = table.new_zeros(1, self.prefix - placed, table.shape[2])
        return self.norm_pre(tokens + torch.cat([table[:, :placed], none, table[:, placed:]], 1))


def init_transformer(module: nn.Module) -> None:
    """Initialise as the original ViT does: Xavier-uniform linear weights, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@register
def vit_tiny(**options: object) -> ViT:
    """Build ViT-Ti / DeiT-Ti: 12 blocks of width 192, 3 heads."""
    return ViT(dim=192, depth=12, heads=3, **options)  # type: ignore[arg-type]


@register
def vit_small(**options: object) -> ViT:
    """Build ViT-S / DeiT-S: 12 blocks of width 384, 6 heads."""
    return ViT(dim=384, depth=12, heads=6, **options)  # type: ignore[arg-type]


@register
def vit_base(**options: object) -> ViT:
    """Build ViT-B / DeiT-B: 12 blocks of width 768, 12 heads."""
    return ViT(dim=768, depth=12, heads=12, **options)  # type: ignore[arg-type]
