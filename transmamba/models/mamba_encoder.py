"""A text encoder in the shape of BERT whose blocks mix by state spaces, in both directions."""

from torch import nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack
from transmamba.models.text_encoder import TextEncoderMethods
from transmamba.nn import MambaBlock, MambaMixer, init_position

ORDERS = ("forward", "backward")


@register
class MambaEncoder(Pretrained, TextEncoderMethods, nn.Module):
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
        self.width, self.pad_token, self.order_names = dim, None, ORDERS
        self.embedding = nn.Embedding(vocab_size, dim)
        self.pos_embed = None if max_length is None else init_position(max_length, dim)
        self.type_embedding = nn.Embedding(types, dim) if types else None
        self.embed_norm = nn.LayerNorm(dim, eps=1e-12)
        self.blocks = BlockStack(
            MambaBlock(dim, MambaMixer(dim, d_state, directions=len(ORDERS)), mlp_ratio=mlp_ratio) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self._init_weights()
