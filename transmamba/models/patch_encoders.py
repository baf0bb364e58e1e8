"""Vision encoders as a vision-language model calls them: images in, patch tokens and their grid out."""

from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.features import Backbone
from transmamba.models.stack import reset_children
from transmamba.ops.orders import Grid


def clip_parts(clip: nn.Module, *names: str, kind: str = "CLIPModel") -> list[Any]:
    """Collect the parts of a CLIP of `transformers` under these names.

    Raises:
        TypeError: it has no such thing.
    """
    missing = [name for name in names if not hasattr(clip, name)]
    if missing:
        raise TypeError(f"expected a {kind} of transformers, got a {type(clip).__name__} without {missing[0]}")
    return [getattr(clip, name) for name in names]


def check_filled(x: Shaped[Tensor, "..."], name: str) -> None:
    """Refuse inputs without elements, which the models of `transformers` cannot take.

    Raises:
        ValueError: one axis has no entries.
    """
    if not x.numel():
        raise ValueError(f"{name} have shape {tuple(x.shape)}: there is nothing for CLIP to see, leave the call out")


class ClipPatches(nn.Module):
    """The patch tokens of a CLIP vision model of `transformers`, without the class token.

    Args:
        encoder: a `CLIPVisionModel`.
        layer: which hidden state; LLaVA takes the one before the last block, -2.

    Raises:
        TypeError: the encoder is not such a model.
        ValueError: that hidden state does not exist; on the call, if there is no image.
    """

    @typed
    def __init__(self, encoder: nn.Module, *, layer: int = -2) -> None:
        super().__init__()
        (config,) = clip_parts(encoder, "config", kind="CLIPVisionModel")
        states = config.num_hidden_layers + 1  # the embedding comes first
        if not -states <= layer < states:
            raise ValueError(f"hidden state {layer} does not exist: expected {-states} to {states - 1}")
        self.encoder: Any = encoder
        self.layer = layer
        self.dim: int = config.hidden_size

    @typed
    def forward(
        self, images: Float[Tensor, "image channel height width"]
    ) -> tuple[Float[Tensor, "image patch dim"], Grid]:
        """Return the tokens in raster order, and the rows and columns of patches."""
        check_filled(images, "images")
        states = self.encoder(pixel_values=images, output_hidden_states=True).hidden_states
        side = self.encoder.config.patch_size
        return states[self.layer][:, 1:], (images.shape[2] // side, images.shape[3] // side)


class BackbonePatches(nn.Module):
    """The patch tokens of a backbone (`transmamba.models.Backbone`), without class and other extra tokens.

    Args:
        backbone: any module with `forward_features`.
        dim: width of its last layer.
        layer: which block's stream; None is the last one after the final norm.

    Example:
        >>> import torch
        >>> from transmamba.models import VisionMamba
        >>> tokens, grid = BackbonePatches(VisionMamba(8, 4, dim=12, depth=2), 12)(torch.zeros(5, 3, 8, 8))
        >>> tokens.shape, grid
        (torch.Size([5, 4, 12]), (2, 2))
    """

    @typed
    def __init__(self, backbone: Backbone, dim: int, *, layer: int | None = None) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.backbone, self.dim, self.layer = backbone, dim, layer

    @typed
    def forward(
        self, images: Float[Tensor, "image channel height width"]
    ) -> tuple[Float[Tensor, "image patch dim"], Grid]:
        """Return the tokens in raster order, and the rows and columns of patches."""
        features = self.backbone.forward_features(images)
        tokens = features.last if self.layer is None else features.layers[self.layer]
        patches = [i for i in range(tokens.shape[1]) if i not in features.extra]
        return tokens[:, patches], features.grid


def encoder_width(vision: nn.Module) -> int:
    """Return the width of the patches.

    Raises:
        TypeError: the encoder does not say.
    """
    width = getattr(vision, "dim", None)
    if not isinstance(width, int):
        raise TypeError(f"a vision encoder needs a width `dim`, {type(vision).__name__} has {width!r}")
    return width


class Projector(nn.Module):
    """linear_2(gelu(linear_1(x))): from the width of an encoder to that of a language model, by LLaVA's names.

    Example:
        >>> import torch
        >>> Projector(3, 5)(torch.zeros(2, 7, 3)).shape
        torch.Size([2, 7, 5])
    """

    def __init__(self, vision_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    @typed
    def forward(self, x: Float[Tensor, "... vision_dim"]) -> Float[Tensor, "... dim"]:
        """Project each token by itself."""
        return self.linear_2(nn.functional.gelu(self.linear_1(x)))

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        reset_children(self)
