"""A text encoder of attention or any other mixers; by default the one of BERT."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.canonical_facts import read_architecture
from transmamba.models.features import EncoderMethods, Features
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack, Builders, per_layer, reset_children
from transmamba.nn import Attention, TransformerBlock, init_position
from transmamba.nn.norm import build_norm
from transmamba.nn.position import number_tokens, take_positions
from transmamba.ops import ScanOrder, scan_orders
from transmamba.transfer.teachers.architecture import Architecture


@register
class TransformerEncoder(Pretrained, EncoderMethods, nn.Module):
    """Embeddings of tokens, positions and segments, their norm, blocks, norm.

    Positions are those in the row, so padding belongs on the right; with `pad_token` they count the other tokens, and
    padding may stand on either side.

    Args:
        vocab_size: number of tokens.
        dim: width of the tokens.
        depth: number of blocks.
        heads: attention heads.
        max_length: rows of a learned position table; none by default.
        types: kinds of segments; no such table by default.
        embedding_dim: width of the embeddings, if they are projected to `dim` afterwards.
        mixer: builds a mixer from a width, attention of `heads` heads by default; or one builder per block.
        block: builds a block from a width and a mixer, by default one of BERT; or one builder per block.
        orders: names of scan orders, for mixers that scan; attention needs none.
        embed_norm: a norm of the embeddings.
        final_norm: a norm after the last block.
        norm: kind of these norms.
        norm_eps: their epsilon.
        norm_bias: whether they have a bias; an RMSNorm has none.
        pad_token: let positions count the tokens other than this one, as RoBERTa does. Without a mask, these tokens
            are the real ones.

    Raises:
        ValueError: the heads do not divide the width, there is not one builder per block, or the padding token does
            not exist.

    Reference:
        BERT, arXiv 1810.04805. Norms before the branches, rotary positions and windows are options of the blocks and
        the mixers.

    Example:
        >>> import torch
        >>> bert = TransformerEncoder(11, 8, depth=2, heads=2, max_length=5)
        >>> bert(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[True] * 3, [True, True, False]])).shape
        torch.Size([2, 3, 8])
    """

    @typed
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        depth: int,
        heads: int = 12,
        max_length: int | None = None,
        types: int = 0,
        embedding_dim: int | None = None,
        mixer: Builders | None = None,
        block: Builders | None = None,
        orders: Sequence[str] | None = None,
        embed_norm: bool = True,
        final_norm: bool = False,
        norm: Literal["layer", "rms"] = "layer",
        norm_eps: float = 1e-12,
        norm_bias: bool = True,
        pad_token: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, dim=dim, depth=depth, heads=heads, max_length=max_length)
        check_sizes(types=types or None, embedding_dim=embedding_dim)
        if pad_token is not None and not 0 <= pad_token < vocab_size:
            raise ValueError(f"pad_token must be one of {vocab_size} tokens, got {pad_token}")
        width = embedding_dim or dim
        self.pad_token, self.order_names, self._dim = pad_token, orders, dim
        self.embedding = nn.Embedding(vocab_size, width)
        self.pos_embed = None if max_length is None else init_position(max_length, width)
        self.type_embedding = nn.Embedding(types, width) if types else None
        self.embed_norm = build_norm(norm, width, norm_eps, norm_bias) if embed_norm else nn.Identity()
        self.embed_proj = nn.Linear(width, dim) if embedding_dim else nn.Identity()
        mixers = per_layer(mixer or partial(Attention, heads=heads), depth, "mixer")
        bert = partial(TransformerBlock, hidden_dim=4 * dim, eps=norm_eps, placement="post")
        blocks = per_layer(block or bert, depth, "block")
        self.blocks = BlockStack(build(dim, mix(dim)) for build, mix in zip(blocks, mixers, strict=True))
        self.norm = build_norm(norm, dim, norm_eps, norm_bias) if final_norm else nn.Identity()
        self._init_weights()

    @typed
    def forward(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Bool[Tensor, "batch token"] | None = None,
        type_ids: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Encode the tokens. True in `mask` marks a real one; the others influence none of them.

        Raises:
            ValueError: there are more tokens than positions, or `type_ids` and no table for them.
        """
        mask = self._real(ids, mask)
        return self.norm(self.blocks(self._embed(ids, mask, type_ids), self._orders(ids), mask))

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
        streams = self.blocks.streams(self._embed(ids, mask, type_ids), orders, mask, directions=directions)
        last = self.norm(streams.layers[-1])
        return Features(last, streams.layers, (ids.shape[1],), streams.directions, tuple(orders or ()))

    @property
    def architecture(self) -> Architecture | None:
        """Facts by which `transfer.translate` reads the model as a teacher; None if not all mixers are attention.

        Raises:
            ValueError: blocks differ in something that a canonical Transformer has one of.
        """
        return read_architecture(self, "encoder", pad_position=self.pad_token)

    def stream_size(self) -> tuple[int, int]:
        """Return the width of the stream, and one: a token stands for itself."""
        return self._dim, 1

    def reset_parameters(self) -> None:
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

    def _embed(self, ids: Tensor, mask: Tensor | None, type_ids: Tensor | None) -> Tensor:
        x = self.embedding(ids)
        if self.type_embedding is not None:
            x = x + self.type_embedding(ids.new_zeros(()).expand_as(ids) if type_ids is None else type_ids)
        elif type_ids is not None:
            raise ValueError("type_ids need a table: build the encoder with types=2")
        if self.pos_embed is not None:
            counted = None if self.pad_token is None else ids != self.pad_token
            x = x + take_positions(self.pos_embed, number_tokens(x, counted, None)[0])
        return self.embed_proj(self.embed_norm(x))
