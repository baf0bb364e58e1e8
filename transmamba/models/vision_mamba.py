"""The paper's student: an isotropic vision Mamba whose blocks are those of a Transformer but for the mixer."""

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.features import FeatureMethods, Features
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack, Builders, init_head, per_layer, reset_children
from transmamba.nn import MambaBlock, MambaMixer, PatchEmbed, init_position
from transmamba.nn.embed import check_patch_grid, draw_position, image_sides
from transmamba.ops import scan_orders

SNAKES = ("snake", "snake_reverse", "snake_column", "snake_column_reverse")


@register
class VisionMamba(Pretrained, FeatureMethods, nn.Module):
    """Patches, position table, blocks of LN-SSM-residual and LN-MLP-residual, mean over tokens, linear head.

    Args:
        img_size: rows and columns of the image in pixels, or one number for both.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        num_classes: outputs of the head; with 0 the model returns the head's input.
        dim: width of the tokens.
        depth: number of blocks.
        orders: one scan order per direction: a name of `ops.scan_order`, or the token numbers themselves.
            `("forward",)`, `("forward", "backward")` and `SNAKES` are the usual ones.
        mlp: blocks with their second half; False leaves plain Mamba blocks.
        d_state: states per channel, 16 by default; a `mixer` of your own has it in its builder.
        mixer: builds a mixer from a width, or one builder per block, as in `MambaLM`; a `MambaMixer` with one branch
            per order by default. It is called as `mixer(x, orders, mask)`.
        mlp_ratio: hidden width of the MLPs as a multiple of `dim`.

    Raises:
        ValueError: the patches do not tile the image, an order does not fit the patch grid, there is not one builder
            per block, or `d_state` is given along with `mixer`.

    Reference:
        arXiv 2502.15130, section on weight subcloning; how the directions are built is ours (docs/decisions.md).

    Example:
        >>> import torch
        >>> student = VisionMamba(img_size=8, patch_size=4, dim=12, depth=2, num_classes=5)
        >>> student(torch.zeros(2, 3, 8, 8)).shape
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
        orders: Sequence[str | Sequence[int]] = ("forward", "backward"),
        mlp: bool = True,
        d_state: int | None = None,
        mixer: Builders | None = None,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_sizes(in_chans=in_chans, num_classes=num_classes or None, dim=dim, depth=depth, d_state=d_state)
        self.patch_embed = PatchEmbed(dim, patch_size=patch_size, in_chans=in_chans)
        self.grid = self.patch_embed.grid(*image_sides(img_size))
        self.pos_embed = init_position(self.grid[0] * self.grid[1], dim)
        self.order_specs = tuple(orders)
        scan_orders(self.order_specs, self.grid)  # a wrong order fails here, not at the first forward
        if mixer is None:
            mixer = partial(MambaMixer, d_state=d_state or 16, directions=len(orders))
        elif d_state is not None:
            raise ValueError(f"d_state={d_state} is for the default mixer: give it to the builder of yours instead")
        self.blocks = BlockStack(
            MambaBlock(dim, build(dim), mlp=mlp, mlp_ratio=mlp_ratio) for build in per_layer(mixer, depth, "mixer")
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        init_head(self.head)

    @typed
    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        orders = scan_orders(self.order_specs, self.grid, x.device)
        return self.forward_head(self.norm(self.blocks(self._embed(x), orders)))

    @typed
    def forward_features(self, x: Float[Tensor, "batch channel height width"], directions: bool = False) -> Features:
        """Return the tokens of every layer, and with `directions` each direction's share of every mixer output."""
        orders = scan_orders(self.order_specs, self.grid, x.device)
        layers, shares = self.blocks.streams(self._embed(x), orders, directions=directions)
        return Features(self.norm(layers[-1]), layers, self.grid, shares, tuple(orders))

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        reset_children(self)
        draw_position(self.pos_embed)
        init_head(self.head)

    def _embed(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x)
        check_patch_grid(self.patch_embed, x, self.grid)
        return tokens + self.pos_embed
