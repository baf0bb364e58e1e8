"""A Vision Transformer with timm's parameter names: the teacher of the examples, and of any DeiT checkpoint."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.features import Features, select_layers
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import reset_children
from transmamba.nn import Mlp, PatchEmbed, init_position
from transmamba.nn.embed import draw_position


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide the width: got {heads} heads, width {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    @typed
    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Every token attends to every token."""
        q, k, v = rearrange(
            self.qkv(x), "batch token (three head width) -> three batch head token width", three=3, head=self.heads
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(y, "batch head token width -> batch token (head width)"))


class ViTBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, dim: int, heads: int, *, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    @typed
    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The stream after the block."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Pretrained, nn.Module):
    """Vision Transformer; with `distilled` a DeiT, whose two heads are averaged as DeiT does for prediction.

    Args:
        img_size: rows and columns of the image in pixels, or one number for both.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        num_classes: outputs of the head.
        dim: width of the tokens.
        depth: number of blocks.
        heads: attention heads.
        distilled: add DeiT's distillation token and head.

    Raises:
        ValueError: the patches do not tile the image, or the heads do not divide the width.

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
        distilled: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_chans=in_chans, num_classes=num_classes, dim=dim, depth=depth, heads=heads)
        self.patch_embed = PatchEmbed(dim, patch_size=patch_size, in_chans=in_chans)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid = self.patch_embed.grid(height, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if distilled else None
        self.pos_embed = init_position((2 if distilled else 1) + self.grid[0] * self.grid[1], dim)
        self.blocks = nn.ModuleList(ViTBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        self.head_dist = nn.Linear(dim, num_classes) if distilled else None
        self.apply(init_transformer)

    @typed
    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        last = self.forward_features(x).last
        logits = self.head(last[:, 0])
        return logits if self.head_dist is None else (logits + self.head_dist(last[:, 1])) / 2

    @typed
    def forward_features(self, x: Float[Tensor, "batch channel height width"]) -> Features:
        """Tokens of every layer, class tokens in front (`Features.extra` has their positions).

        Raises:
            ValueError: the image has another size than the model was built for.
        """
        tokens = self.patch_embed(x)
        if self.patch_embed.grid(*x.shape[-2:]) != self.grid:
            raise ValueError(f"built for a patch grid of {self.grid}, the image has {tuple(x.shape[-2:])} pixels")
        extra = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        tokens = torch.cat([*extra, tokens], 1) + self.pos_embed
        layers = []
        for block in self.blocks:
            tokens = block(tokens)
            layers.append(tokens)
        return Features(self.norm(tokens), tuple(layers), self.grid, extra=tuple(range(len(extra))))

    def forward_intermediates(
        self, x: Float[Tensor, "batch channel height width"], indices: int | list[int] | None = None
    ) -> tuple[Float[Tensor, "batch token dim"], list[Float[Tensor, "batch token dim"]]]:
        """The final tokens and the stream after the chosen blocks: None all, n the last n, or a list."""
        features = self.forward_features(x)
        return features.last, select_layers(features.layers, indices)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not shrink."""
        return {"pos_embed", "cls_token", "dist_token"}

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        reset_children(self)
        draw_position(self.pos_embed)
        for token in (self.cls_token, self.dist_token):
            if token is not None:
                nn.init.zeros_(token)
        self.apply(init_transformer)


def init_transformer(module: nn.Module) -> None:
    """The original ViT's start: Xavier-uniform linear weights, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vit_tiny(**options: object) -> ViT:
    """ViT-Ti / DeiT-Ti: 12 blocks of width 192, 3 heads."""
    return ViT(dim=192, depth=12, heads=3, **options)  # type: ignore[arg-type]


def vit_small(**options: object) -> ViT:
    """ViT-S / DeiT-S: 12 blocks of width 384, 6 heads."""
    return ViT(dim=384, depth=12, heads=6, **options)  # type: ignore[arg-type]


def vit_base(**options: object) -> ViT:
    """ViT-B / DeiT-B: 12 blocks of width 768, 12 heads."""
    return ViT(dim=768, depth=12, heads=12, **options)  # type: ignore[arg-type]
