"""Language models of any mixers: embedding, blocks of norm and mixer, norm, head tied to the embedding or not."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.builders import register
from transmamba.models.canonical_facts import read_architecture
from transmamba.models.features import FeatureMethods, Features
from transmamba.models.generate import continue_tokens, last_real, next_token
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack, Builders, output_layer, per_layer, reset_children
from transmamba.models.tied import TiedHead
from transmamba.nn import AttentionCache, MambaMixer, MixerCache, TransformerBlock, init_position
from transmamba.nn.cache import ConvolvedCache
from transmamba.nn.embed import draw_position
from transmamba.nn.norm import build_norm
from transmamba.nn.position import number_tokens, take_positions
from transmamba.ops import TrapezoidState, scan_order
from transmamba.transfer.teachers.architecture import Architecture

LayerCache = MixerCache | TrapezoidState | AttentionCache | ConvolvedCache
Cache = tuple[LayerCache | Tensor, ...]  # with learned positions, the number of real tokens comes last


@register
class MambaLM(Pretrained, FeatureMethods, TiedHead, nn.Module):
    """A causal language model of Mamba, Mamba-2 or Mamba-3 blocks, of attention, or of any mixture of them.

    The stream between the blocks is float32 whatever the weights are.

    Args:
        vocab_size: number of tokens; the tables have a few more rows, up to a multiple of `vocab_multiple`.
        dim: width of the tokens.
        depth: number of blocks.
        mixer: builds a mixer from a width, `functools.partial(Mamba2Mixer, d_state=64)` for another size; or one
            builder per block.
        d_intermediate: hidden width of an MLP in every block, up to a multiple of 128; none by default.
        tied: embedding and head are one matrix.
        vocab_multiple: number of which the rows are a multiple.
        norm_eps: added to the mean square or variance in every norm.
        block: builds a block from a width and a mixer, such as a `functools.partial` of `nn.TransformerBlock` with
            another MLP or other norms; or one builder per block.
        norm: kind of the norm after the last block.
        norm_bias: whether that norm has a bias; an RMSNorm has none.
        final_norm: whether there is such a norm.
        max_length: rows of a table of learned positions; no such table by default.
        head_bias: bias of the head.
        logit_softcap: logits become logit_softcap tanh(logits / logit_softcap).

    Raises:
        ValueError: there is not one builder per block, or `d_intermediate` is given along with `block`; on the call,
            if there are more tokens than positions.

    Reference:
        Mamba, arXiv 2312.00752; Mamba-2, arXiv 2405.21060; the initialisation is that of mamba_ssm.

    Example:
        >>> lm = MambaLM(11, 8, depth=2)
        >>> lm(torch.tensor([[1, 2, 3]])).shape, lm.generate(torch.tensor([[1, 2, 3]]), 4).shape
        (torch.Size([1, 3, 16]), torch.Size([1, 7]))
        >>> from transmamba.nn import Attention
        >>> hybrid = MambaLM(11, 8, depth=2, mixer=[MambaMixer, partial(Attention, heads=2, causal=True)])
        >>> hybrid.generate(torch.tensor([[1, 2, 3]]), 4).shape
        torch.Size([1, 7])
    """

    @typed
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        depth: int,
        mixer: Builders = MambaMixer,
        d_intermediate: int = 0,
        tied: bool = True,
        vocab_multiple: int = 8,
        norm_eps: float = 1e-5,
        block: Builders | None = None,
        norm: Literal["rms", "layer"] = "rms",
        norm_bias: bool = True,
        final_norm: bool = True,
        max_length: int | None = None,
        head_bias: bool = False,
        logit_softcap: float | None = None,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, dim=dim, depth=depth, vocab_multiple=vocab_multiple, max_length=max_length)
        check_sizes(d_intermediate=d_intermediate or None)
        if logit_softcap is not None and not logit_softcap > 0:
            raise ValueError(f"logit_softcap must be positive, got {logit_softcap}")
        if block is None:
            block = mamba_block(d_intermediate, norm_eps)
        elif d_intermediate:
            raise ValueError("the blocks bring their MLP along: give either block or d_intermediate")
        self.vocab_size, self.tied, self.logit_softcap = vocab_size, tied, logit_softcap
        rows = -(-vocab_size // vocab_multiple) * vocab_multiple
        self.embedding = nn.Embedding(rows, dim)
        self.pos_embed = None if max_length is None else init_position(max_length, dim)
        pairs = zip(per_layer(block, depth, "block"), per_layer(mixer, depth, "mixer"), strict=True)
        self.blocks = BlockStack(build(dim, build_mixer(dim)) for build, build_mixer in pairs)
        self.norm = build_norm(norm, dim, norm_eps, norm_bias) if final_norm else nn.Identity()
        self.head = nn.Linear(dim, rows, bias=head_bias)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        self.tie_weights()
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in self.blocks:
            mlp = getattr(block, "mlp", None)
            outputs = [output_layer(getattr(block, getattr(block, "mixer_name", "mixer"))), mlp and mlp.fc2]
            branches = [layer for layer in outputs if layer is not None]
            for projection in branches:
                projection.weight /= math.sqrt(len(branches) * len(self.blocks))

    def reset_parameters(self) -> None:
        """Draw the initial values again, for instance after the model was built on the meta device."""
        reset_children(self)
        if self.pos_embed is not None:
            draw_position(self.pos_embed)
        self._init_weights()

    @typed
    def forward(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token vocabulary"]:
        """Compute the logits of the token after each token.

        Args:
            ids: tokens.
            mask: True marks a real token.
            seq_idx: number of the packed text each token belongs to; texts do not see each other.
        """
        x = self._place(self.embed(ids), mask, seq_idx)
        return self._logits(self.norm(self.blocks(x, None, mask, seq_idx)))

    @typed
    def forward_features(
        self,
        ids: Int[Tensor, "batch token"],
        directions: bool = False,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> Features:
        """Return the tokens of every layer, and with `directions` every mixer's output as that of the one direction."""
        x = self._place(self.embed(ids), mask, seq_idx)
        streams = self.blocks.streams(x, None, mask, seq_idx, directions=directions)
        orders = (scan_order("forward", ids.shape[1], ids.device),) if directions else ()
        return Features(self.norm(streams.layers[-1]), streams.layers, (ids.shape[1],), streams.directions, orders)

    def forward_head(self, features: Features | Tensor, pre_logits: bool = False) -> Tensor:
        """Compute the logits from the result of `forward_features`; with `pre_logits`, return the head's input."""
        last = features if isinstance(features, Tensor) else features.last
        return last if pre_logits else self._logits(last)

    def stream_size(self) -> tuple[int, int]:
        """Return the width of the stream, and one: a token stands for itself."""
        return self.embedding.embedding_dim, 1

    @property
    def architecture(self) -> Architecture | None:
        """Facts by which `transfer.translate` reads the model as a teacher; None if not all mixers are attention.

        Raises:
            ValueError: blocks differ in something that a canonical Transformer has one of.
        """
        return read_architecture(self, "decoder", tied=self.tied, logit_softcap=self.logit_softcap)

    @typed
    def prefill(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Bool[Tensor, "batch token"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Tensor, "batch vocabulary"], Cache]:
        """Read a prompt, after `cache` if given; return the logits after its last real token, and the new cache."""
        before, seen = self._split(cache, ids)
        x, caches = self._place(self.embed(ids), mask, seen=seen), []
        for block, layer in zip(self.blocks, before, strict=True):
            x, after = block.prefill(x, mask, layer)
            caches.append(after)
        ends = seen + (ids.shape[1] if mask is None else mask.sum(1))
        return self._logits(self.norm(last_real(x, mask))), self._joined(caches, ends)

    @typed
    def step(self, ids: Int[Tensor, " batch"], cache: Cache) -> tuple[Float[Tensor, "batch vocabulary"], Cache]:
        """Return the logits after one more token per sequence, and the cache after it."""
        before, seen = self._split(cache, ids)
        x, caches = self._place(self.embed(ids)[:, None], None, seen=seen)[:, 0], []
        for block, layer in zip(self.blocks, before, strict=True):
            x, after = block.step(x, layer)
            caches.append(after)
        return self._logits(self.norm(x)), self._joined(caches, seen + 1)

    @typed
    @torch.no_grad()
    def generate(
        self,
        ids: Int[Tensor, "batch token"],
        max_new_tokens: int,
        *,
        mask: Bool[Tensor, "batch token"] | None = None,
        stop_tokens: Sequence[int] = (),
        pad_token: int = 0,
        **sampling: Any,
    ) -> Int[Tensor, "batch longer"]:
        """Continue the prompts; the result starts with them.

        Args:
            ids: prompts; shorter ones are padded on the left.
            max_new_tokens: tokens to add at most.
            mask: True marks a real token of a prompt.
            stop_tokens: each ends its sequence.
            pad_token: token that fills up a sequence that has ended.
            sampling: `temperature`, `top_k`, `top_p` and `generator` of `next_token`; greedy by default.
        """
        logits, cache = self.prefill(ids, mask)

        def choose(logits: Tensor) -> Tensor:
            return next_token(logits[:, : self.vocab_size], **sampling)

        new = continue_tokens(
            logits,
            cache,
            self.step,
            choose,
            max_new_tokens=max_new_tokens,
            stop_tokens=stop_tokens,
            pad_token=pad_token,
        )
        return torch.cat([ids, new], 1)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, in at least float32, as the stream is."""
        x = self.embedding(ids)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def _place(
        self, x: Tensor, mask: Tensor | None, seq_idx: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """Add the learned positions, if there are any, after `seen` tokens of each sequence."""
        if self.pos_embed is None:
            return x
        return x + take_positions(self.pos_embed, number_tokens(x, mask, seq_idx)[0], seen)

    def _logits(self, last: Tensor) -> Tensor:
        weight = self.head.weight  # a method where the head is quantised
        # without a norm the stream is still float32
        logits = self.head(last.to(weight.dtype) if isinstance(weight, Tensor) else last)
        cap = self.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _split(self, cache: Cache | None, ids: Tensor) -> tuple[Sequence[Any], Tensor]:
        """Return the caches of the blocks, and the number of earlier real tokens, (batch,), if positions need it."""
        none = ids.new_zeros(len(ids))
        if not cache:
            return [None] * len(self.blocks), none
        return (cache, none) if self.pos_embed is None else (cache[:-1], cache[-1])  # type: ignore[return-value]

    def _joined(self, caches: Sequence[LayerCache], seen: Tensor) -> Cache:
        return tuple(caches) if self.pos_embed is None else (*caches, seen)


def mamba_block(d_intermediate: int, eps: float = 1e-5, norm: Literal["rms", "layer"] = "rms") -> Builders:
    """Build the blocks of mamba_ssm: norms of one kind, and a gated MLP if `d_intermediate` is not zero."""
    hidden_dim = -(-d_intermediate // 128) * 128 or None  # as mamba_ssm does
    return partial(
        TransformerBlock, hidden_dim=hidden_dim, gated=True, activation="silu", mlp_bias=False, norm=norm, eps=eps
    )
