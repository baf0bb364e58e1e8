"""A text encoder of attention or any other mixers; by default the one of BERT."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.canonical_facts import read_architecture
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack, Builders, per_layer
from transmamba.models.text_encoder import TextEncoderMethods
from transmamba.nn import Attention, TransformerBlock, init_position
from transmamba.nn.norm import build_norm
from transmamba.transfer.teachers.architecture import Architecture


@register
class TransformerEncoder(Pretrained, TextEncoderMethods, nn.Module):
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
        self.width, self.pad_token, self.order_names = dim, pad_token, orders
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

    @property
    def architecture(self) -> Architecture | None:
        """Facts by which `transfer.translate` reads the model as a teacher; None if not all mixers are attention.

        Raises:
            ValueError: blocks differ in something that a canonical Transformer has one of.
        """
        return read_architecture(self, "encoder", pad_position=self.pad_token)

    def _embed(self, ids: Tensor, type_ids: Tensor | None) -> Tensor:
        return self.embed_proj(super()._embed(ids, type_ids))
