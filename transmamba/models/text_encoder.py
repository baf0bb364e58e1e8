"""The common half of text encoders: embeddings of tokens, positions and segments, and the forward calls."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import typed
from transmamba.models.features import EncoderMethods, Features
from transmamba.models.stack import BlockStack, reset_children
from transmamba.nn.position import number_tokens, take_positions
from transmamba.ops import ScanOrder, scan_orders


class TextEncoderMethods(EncoderMethods):
    """Mixin for an `nn.Module` with the attributes below.

    Attributes:
        width: of the stream.
        pad_token: positions count the other tokens, which are the real ones where there is no mask; None counts all.
        order_names: names of scan orders, for mixers that scan.
    """

    embedding: nn.Embedding
    pos_embed: nn.Parameter | None
    type_embedding: nn.Embedding | None
    embed_norm: nn.Module
    blocks: BlockStack
    norm: nn.Module
    width: int
    pad_token: int | None
    order_names: Sequence[str] | None

    @typed
    def forward(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Bool[Tensor, "batch token"] | None = None,
        type_ids: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Encode tokens. True in `mask` marks a real token; padding does not influence the others.

        Raises:
            ValueError: there are more tokens than positions, or `type_ids` and no table for them.
        """
        mask = self._real(ids, mask)
        return self.norm(self.blocks(self._embed(ids, type_ids), self._orders(ids), mask))

    @typed
    def forward_features(
        self,
        ids: Int[Tensor, "batch token"],
        directions: bool = False,
        mask: Bool[Tensor, "batch token"] | None = None,
        type_ids: Int[Tensor, "batch token"] | None = None,
    ) -> Features:
        """Return the tokens of every layer, and with `directions` each direction's share of every mixer output."""
        mask, orders = self._real(ids, mask), self._orders(ids)
        streams = self.blocks.streams(self._embed(ids, type_ids), orders, mask, directions=directions)
        last = self.norm(streams.layers[-1])
        return Features(last, streams.layers, (ids.shape[1],), streams.directions, tuple(orders or ()))

    def stream_size(self) -> tuple[int, int]:
        """Return the width of the stream, and one: a token stands for itself."""
        return self.width, 1

    def reset_parameters(self: Any) -> None:
        """Draw the initial values again, for instance after the model was built on the meta device."""
        reset_children(self)
        self._init_weights()

    def _init_weights(self) -> None:
        types = None if self.type_embedding is None else self.type_embedding.weight
        for table in (self.embedding.weight, self.pos_embed, types):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def _real(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        return ids != self.pad_token if mask is None and self.pad_token is not None else mask

    def _orders(self, ids: Tensor) -> list[ScanOrder] | None:
        return None if self.order_names is None else scan_orders(self.order_names, ids.shape[1], ids.device)

    def _embed(self, ids: Tensor, type_ids: Tensor | None) -> Tensor:
        x = self.embedding(ids)
        if self.type_embedding is not None:
            x = x + self.type_embedding(ids.new_zeros(()).expand_as(ids) if type_ids is None else type_ids)
        elif type_ids is not None:
            raise ValueError("type_ids need a table: build the encoder with types=2")
        if self.pos_embed is not None:
            counted = None if self.pad_token is None else ids != self.pad_token
            x = x + take_positions(self.pos_embed, number_tokens(x, counted, None)[0])
        return self.embed_norm(x)
