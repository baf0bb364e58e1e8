"""A text encoder in the shape of BERT whose blocks mix by state spaces, in both directions."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.features import EncoderMethods, Features
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack, reset_children
from transmamba.nn import MambaBlock, MambaMixer, init_position
from transmamba.ops import scan_orders

ORDERS = ("forward", "backward")


@register
class MambaEncoder(Pretrained, EncoderMethods, nn.Module):
    """Embeddings and their norm as in BERT, blocks of LN-SSM-residual and LN-MLP-residual, norm.

    Every tensor outside the mixers has the shape of BERT's, so a BERT or a MiniLM of the same width can be inherited
    from. BERT norms after each residual, here the norm comes before.

    Args:
        vocab_size: number of tokens.
        dim: width of the tokens.
        depth: number of blocks.
        max_length: positions of the learned table; without it order is known to the scans alone.
        types: kinds of segments (BERT has 2); no such table by default.
        mlp_ratio: hidden width of the MLPs as a multiple of `dim`.
        d_state: states per channel.

    Example:
        >>> import torch
        >>> encoder = MambaEncoder(11, 8, depth=2, max_length=5)
        >>> encoder(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[True] * 3, [True, True, False]])).shape
        torch.Size([2, 3, 8])
    """

    @typed
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        depth: int,
        max_length: int | None = None,
        types: int = 0,
        mlp_ratio: float = 4.0,
        d_state: int = 16,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, dim=dim, depth=depth, max_length=max_length, d_state=d_state)
        check_sizes(types=types or None)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.pos_embed = None if max_length is None else init_position(max_length, dim)
        self.type_embedding = nn.Embedding(types, dim) if types else None
        self.embed_norm = nn.LayerNorm(dim, eps=1e-12)
        self.blocks = BlockStack(
            MambaBlock(dim, MambaMixer(dim, d_state, directions=len(ORDERS)), mlp_ratio=mlp_ratio) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self._init_weights()

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
        orders = scan_orders(ORDERS, ids.shape[1], ids.device)
        return self.norm(self.blocks(self._embed(ids, type_ids), orders, mask))

    @typed
    def forward_features(
        self,
        ids: Int[Tensor, "batch token"],
        directions: bool = False,
        mask: Bool[Tensor, "batch token"] | None = None,
        type_ids: Int[Tensor, "batch token"] | None = None,
    ) -> Features:
        """Return the tokens of every layer, and with `directions` each direction's share of every mixer output."""
        orders = scan_orders(ORDERS, ids.shape[1], ids.device)
        streams = self.blocks.streams(self._embed(ids, type_ids), orders, mask, directions=directions)
        last = self.norm(streams.layers[-1])
        return Features(last, streams.layers, (ids.shape[1],), streams.directions, tuple(orders))

    def stream_size(self) -> tuple[int, int]:
        """Return the width of the stream, and one: a token stands for itself."""
        return self.embedding.embedding_dim, 1

    def reset_parameters(self) -> None:
        """Draw the initial values again, for instance after the model was built on the meta device."""
        reset_children(self)
        self._init_weights()

    def _init_weights(self) -> None:
        types = None if self.type_embedding is None else self.type_embedding.weight
        for table in (self.embedding.weight, self.pos_embed, types):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def _embed(self, ids: Tensor, type_ids: Tensor | None) -> Tensor:
        x, length = self.embedding(ids), ids.shape[1]
        if self.pos_embed is not None:
            if length > self.pos_embed.shape[1]:
                raise ValueError(f"built for at most {self.pos_embed.shape[1]} tokens, got {length}")
            x = x + self.pos_embed[:, :length]
        if self.type_embedding is not None:
            x = x + self.type_embedding(ids.new_zeros(()).expand_as(ids) if type_ids is None else type_ids)
        elif type_ids is not None:
            raise ValueError("type_ids need a table: build the encoder with types=2")
        return self.embed_norm(x)
