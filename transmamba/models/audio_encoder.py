"""An audio encoder of attention or any other mixers; by default the one of Whisper."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.models.builders import register
from transmamba.models.canonical_facts import read_architecture
from transmamba.models.features import EncoderMethods, Features
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack, Builders, per_layer, reset_children
from transmamba.nn import Attention, TransformerBlock, init_position
from transmamba.nn.embed import draw_position
from transmamba.nn.norm import build_norm
from transmamba.ops import ScanOrder, scan_orders
from transmamba.transfer.teachers.architecture import Architecture


@register
class AudioEncoder(Pretrained, EncoderMethods, nn.Module):
    """Two convolutions with GELU, the second of stride 2, position table, blocks, norm.

    Args:
        mels: channels of the spectrogram.
        dim: width of the tokens.
        depth: number of blocks.
        heads: attention heads.
        max_length: rows of the position table, half as many as there may be frames.
        mixer: builds a mixer from a width, attention of `heads` heads by default; or one builder per block.
        block: builds a block from a width and a mixer, by default a pre-norm one; or one builder per block.
        orders: names of scan orders, for mixers that scan; attention needs none.
        norm: kind of the norm after the last block.
        norm_eps: its epsilon.
        norm_bias: whether it has a bias; an RMSNorm has none.

    Raises:
        ValueError: the heads do not divide the width, or there is not one builder per block; on the call, if there are
            more frames than positions.

    Reference:
        Whisper, arXiv 2212.04356.

    Example:
        >>> import torch
        >>> AudioEncoder(5, 8, depth=2, heads=2, max_length=7)(torch.zeros(2, 5, 12)).shape
        torch.Size([2, 6, 8])
    """

    @typed
    def __init__(
        self,
        mels: int,
        dim: int,
        *,
        depth: int,
        heads: int = 8,
        max_length: int = 1500,
        mixer: Builders | None = None,
        block: Builders | None = None,
        orders: Sequence[str] | None = None,
        norm: Literal["layer", "rms"] = "layer",
        norm_eps: float = 1e-5,
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(mels=mels, dim=dim, depth=depth, heads=heads, max_length=max_length)
        self.order_names = orders
        self.conv1 = nn.Conv1d(mels, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.pos_embed = init_position(max_length, dim)
        mixers = per_layer(mixer or partial(Attention, heads=heads), depth, "mixer")
        blocks = per_layer(block or partial(TransformerBlock, hidden_dim=4 * dim, eps=norm_eps), depth, "block")
        self.blocks = BlockStack(build(dim, mix(dim)) for build, mix in zip(blocks, mixers, strict=True))
        self.norm = build_norm(norm, dim, norm_eps, norm_bias)

    @typed
    def forward(self, x: Float[Tensor, "batch mel frame"]) -> Float[Tensor, "batch token dim"]:
        """Encode a spectrogram, one token per two frames.

        Raises:
            ValueError: there are more frames than positions, or another number of channels.
        """
        tokens = self._embed(x)
        return self.norm(self.blocks(tokens, self._orders(tokens)))

    @typed
    def forward_features(self, x: Float[Tensor, "batch mel frame"], directions: bool = False) -> Features:
        """Return the tokens of every layer, and with `directions` each direction's share of every mixer output."""
        tokens = self._embed(x)
        orders = self._orders(tokens)
        layers, shares = self.blocks.streams(tokens, orders, directions=directions)
        return Features(self.norm(layers[-1]), layers, (tokens.shape[1],), shares, tuple(orders or ()))

    @property
    def architecture(self) -> Architecture | None:
        """Facts by which `transfer.translate` reads the model as a teacher; None if not all mixers are attention.

        Raises:
            ValueError: blocks differ in something that a canonical Transformer has one of.
        """
        return read_architecture(self, "audio")

    def stream_size(self) -> tuple[int, int]:
        """Return the width of the stream, and two: a token stands for two frames."""
        return self.conv2.out_channels, 2

    def reset_parameters(self) -> None:
        """Draw the initial values again."""
        reset_children(self)
        draw_position(self.pos_embed)

    def _orders(self, tokens: Tensor) -> list[ScanOrder] | None:
        return None if self.order_names is None else scan_orders(self.order_names, tokens.shape[1], tokens.device)

    def _embed(self, x: Tensor) -> Tensor:
        check_width(x, self.conv1.in_channels, "x", axis=1)
        check_sizes(frames=x.shape[2] if isinstance(x.shape[2], int) else None)
        tokens = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)
        length, rows = tokens.shape[1], self.pos_embed.shape[1]
        if length > rows:
            raise ValueError(f"built for at most {2 * rows} frames, got {x.shape[2]}")
        return tokens + self.pos_embed[:, :length]
