"""The Mamba language models: embedding, blocks of norm and mixer, norm, head tied to the embedding."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed
from transmamba.models.features import Features, select_layers
from transmamba.models.generate import continue_tokens, last_real, next_token
from transmamba.models.pretrained import Pretrained
from transmamba.models.stack import BlockStack, reset_children
from transmamba.nn import GatedMlp, MambaMixer, MixerCache, RMSNorm
from transmamba.ops import ScanOrder, TrapezoidState, scan_order

LayerCache = MixerCache | TrapezoidState
Cache = tuple[LayerCache, ...]


class MambaLMBlock(nn.Module):
    """x + mixer(norm1(x)), then, if there is an MLP, x + mlp(norm2(x)); x is float32 whatever the weights are."""

    def __init__(self, dim: int, mixer: nn.Module, *, d_intermediate: int = 0, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim, eps=norm_eps)
        self.mixer: Any = mixer
        self.norm2 = RMSNorm(dim, eps=norm_eps) if d_intermediate else None
        self.mlp = GatedMlp(dim, d_intermediate) if d_intermediate else None

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """The stream after the block; the other arguments are the mixer's."""
        return self._feed_forward(x + self.mixer(self.norm1(x), orders, mask, seq_idx))

    def forward_directions(
        self,
        x: Tensor,
        orders: Sequence[ScanOrder] | None = None,
        mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The stream after the block, and the mixer's output by direction, (direction, batch, token, dim)."""
        mixed, parts = self.mixer.forward_directions(self.norm1(x), orders, mask, seq_idx)
        return self._feed_forward(x + mixed), parts

    def prefill(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None) -> tuple[Tensor, LayerCache]:
        """What `forward` gives, going on from `cache`, and the cache after the tokens."""
        mixed, cache = self.mixer.prefill(self.norm1(x), mask, cache)
        return self._feed_forward(x + mixed), cache

    def step(self, x: Tensor, cache: LayerCache) -> tuple[Tensor, LayerCache]:
        """One token (batch, dim) after those of `cache`."""
        mixed, cache = self.mixer.step(self.norm1(x), cache)
        return self._feed_forward(x + mixed), cache

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x if self.norm2 is None or self.mlp is None else x + self.mlp(self.norm2(x))


class MambaLM(Pretrained, nn.Module):
    """A language model of Mamba, Mamba-2 or Mamba-3 blocks.

    Args:
        vocab_size: number of tokens; the tables have a few more rows, up to a multiple of `vocab_multiple`.
        dim: width of the tokens.
        depth: number of blocks.
        mixer: builds a mixer from a width; `functools.partial(Mamba2Mixer, d_state=64)` for another size.
        d_intermediate: hidden width of an MLP in every block; none by default.
        tied: embedding and head are one matrix.
        vocab_multiple: what the number of rows is a multiple of.
        norm_eps: added to the mean square in every norm.

    Reference:
        Mamba, arXiv 2312.00752; Mamba-2, arXiv 2405.21060; the initialisation is that of mamba_ssm.

    Example:
        >>> lm = MambaLM(11, 8, depth=2)
        >>> lm(torch.tensor([[1, 2, 3]])).shape, lm.generate(torch.tensor([[1, 2, 3]]), 4).shape
        (torch.Size([1, 3, 16]), torch.Size([1, 7]))
    """

    @typed
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        depth: int,
        mixer: Callable[[int], nn.Module] = MambaMixer,
        d_intermediate: int = 0,
        tied: bool = True,
        vocab_multiple: int = 8,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, dim=dim, depth=depth, vocab_multiple=vocab_multiple)
        check_sizes(d_intermediate=d_intermediate or None)
        self.vocab_size, self.tied = vocab_size, tied
        rows = -(-vocab_size // vocab_multiple) * vocab_multiple
        self.embedding = nn.Embedding(rows, dim)
        self.blocks = BlockStack(
            MambaLMBlock(dim, mixer(dim), d_intermediate=d_intermediate, norm_eps=norm_eps) for _ in range(depth)
        )
        self.norm = RMSNorm(dim, eps=norm_eps)
        self.head = nn.Linear(dim, rows, bias=False)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        if self.tied:
            self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in self.blocks:
            branches = [block.mixer.out_proj] if block.mlp is None else [block.mixer.out_proj, block.mlp.fc2]
            for projection in branches:
                projection.weight /= math.sqrt(len(branches) * len(self.blocks))

    def reset_parameters(self) -> None:
        """Draw the initial values anew, for instance after the model was built on the meta device."""
        reset_children(self)
        self._init_weights()

    @typed
    def forward(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token vocabulary"]:
        """Logits of the token after each token.

        Args:
            ids: tokens.
            mask: True marks a real token.
            seq_idx: number of the packed text each token belongs to; texts do not see each other.
        """
        return self.head(self.norm(self.blocks(self._embed(ids), None, mask, seq_idx)))

    @typed
    def forward_features(
        self,
        ids: Int[Tensor, "batch token"],
        directions: bool = False,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> Features:
        """Tokens of every layer, and with `directions` every mixer's output as that of the one direction."""
        streams = self.blocks.streams(self._embed(ids), None, mask, seq_idx, directions=directions)
        orders = (scan_order("forward", ids.shape[1], ids.device),) if directions else ()
        return Features(self.norm(streams.layers[-1]), streams.layers, (ids.shape[1],), streams.directions, orders)

    def forward_intermediates(
        self, ids: Int[Tensor, "batch token"], indices: int | list[int] | None = None
    ) -> tuple[Float[Tensor, "batch token dim"], list[Float[Tensor, "batch token dim"]]]:
        """The final tokens and the stream after the chosen blocks: None all, n the last n, or a list."""
        features = self.forward_features(ids)
        return features.last, select_layers(features.layers, indices)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not shrink."""
        return {name for name, _ in self.named_parameters() if name.endswith(("A_log", ".D", "dt_bias"))}

    @typed
    def prefill(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Bool[Tensor, "batch token"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Tensor, "batch vocabulary"], Cache]:
        """Logits after the last real token, going on from `cache` if there is one, and the cache after it."""
        x, caches = self._embed(ids), []
        for block, before in zip(self.blocks, cache or [None] * len(self.blocks), strict=True):
            x, after = block.prefill(x, mask, before)
            caches.append(after)
        return self.head(self.norm(last_real(x, mask))), tuple(caches)

    @typed
    def step(self, ids: Int[Tensor, " batch"], cache: Cache) -> tuple[Float[Tensor, "batch vocabulary"], Cache]:
        """Logits after one more token per sequence, and the cache after it."""
        x, caches = self._embed(ids), []
        for block, before in zip(self.blocks, cache, strict=True):
            x, after = block.step(x, before)
            caches.append(after)
        return self.head(self.norm(x)), tuple(caches)

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
        """The prompts, continued.

        Args:
            ids: prompts; shorter ones are padded on the left.
            max_new_tokens: tokens to add at most.
            mask: True marks a real token of a prompt.
            stop_tokens: each ends its sequence.
            pad_token: what fills up a sequence that has ended.
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

    def _embed(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return x.to(torch.promote_types(x.dtype, torch.float32))
