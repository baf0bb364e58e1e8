"""Attention as a mixer: the part of a Transformer that stands where a Mamba has its scan."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.nn.cache import AttentionCache
from transmamba.nn.directions import mix_along
from transmamba.nn.norm import build_norm
from transmamba.nn.position import number_tokens
from transmamba.nn.rotary import Rope, Rotary
from transmamba.nn.scores import capped_attention, distances, grid_of, relative_index
from transmamba.ops import ScanOrder


class Attention(nn.Module):
    """qkv -> norm and rotation of queries and keys -> softmax(scale q k + bias) v by heads -> proj.

    The rows of `qkv` are all query heads, then the key heads, then the value heads; names are timm's.

    Args:
        d_model: width of the tokens.
        heads: query heads.
        kv_heads: key and value heads, each shared by as many query heads; `heads` by default.
        head_dim: channels of a head; d_model / heads by default.
        causal: tokens attend to themselves and earlier ones only, in the order of the scan if there is one.
        qkv_bias: bias of `qkv`.
        out_bias: bias of `proj`.
        qk_norm: normalise queries and keys: every head by itself, or all heads as one.
        norm: kind of that norm.
        norm_eps: its epsilon.
        norm_bias: whether it has a bias; an RMSNorm has none.
        rope: rotary positions, see `nn.rotary.Rotary`; None for none.
        scale: factor of the scores; head_dim ** -0.5 by default.
        window: tokens at a distance of `window` or more are not attended to.
        softcap: scores become softcap tanh(scores / softcap).
        relative_grid: rows and columns of the tokens after the first, for BEiT's learned bias by distance.

    Raises:
        ValueError: heads do not divide the width, key heads not the heads, or an option contradicts another.

    Reference:
        arXiv 1706.03762; grouped heads 2305.13245; softcap 2408.00118; bias by distance 2106.08254.

    Example:
        >>> Attention(8, heads=2, rope={"rope_theta": 10000.0})(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    @typed
    def __init__(
        self,
        d_model: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        qkv_bias: bool = True,
        out_bias: bool = True,
        qk_norm: Literal["head", "full"] | None = None,
        norm: Literal["layer", "rms"] = "layer",
        norm_eps: float = 1e-6,
        norm_bias: bool = True,
        rope: Rope | None = None,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        relative_grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window)
        if head_dim is None and d_model % heads:
            raise ValueError(f"heads must divide the width: got {heads} heads, width {d_model}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads or heads, head_dim or d_model // heads
        if heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide the heads: got {kv_heads} kv_heads, {heads} heads")
        if softcap is not None and not softcap > 0:
            raise ValueError(f"softcap must be positive, got {softcap}")
        self.causal, self.window, self.softcap, self.qk_norm = causal, window, softcap, qk_norm
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.sizes = [n * self.head_dim for n in (heads, self.kv_heads, self.kv_heads)]
        self.qkv = nn.Linear(d_model, sum(self.sizes), bias=qkv_bias)
        self.q_norm, self.k_norm = (
            build_norm(norm, self.head_dim if qk_norm == "head" else size, norm_eps, norm_bias) if qk_norm else None
            for size in self.sizes[:2]
        )
        self.rotary = None if rope is None else Rotary(rope, self.head_dim)
        self.relative_grid = grid = None if relative_grid is None else grid_of(relative_grid)
        self.relative_bias = None if grid is None else nn.Parameter(torch.zeros(distances(grid), heads))
        if self.on_grid and (causal or window):
            raise ValueError("attention over the tokens of a grid is neither causal nor windowed")
        self.proj = nn.Linear(self.sizes[0], d_model, bias=out_bias)

    @property
    def on_grid(self) -> bool:
        """Whether the tokens have to be those of a certain grid."""
        return self.relative_grid is not None or (self.rotary is not None and self.rotary.grid is not None)

    def reset_parameters(self) -> None:
        """Set the parameters that this module itself owns to their initial values."""
        if self.relative_bias is not None:
            nn.init.zeros_(self.relative_bias)

    @typed
    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """Mix the tokens.

        Args:
            x: tokens.
            orders: the one scan order of causal attention, forward by default. Attention in both directions has none
                and ignores them.
            mask: True marks a real token; padded ones influence no other and come out as the bias of `proj`.
                Positions count real tokens only.
            seq_idx: number of the packed sequence each token belongs to; they do not attend to each other.

        Raises:
            ValueError: causal attention gets more than one order, or tokens of a grid are packed.
        """
        if self.causal:
            return mix_along(self._mix, x, orders, mask, seq_idx)
        return self._mix(x, mask, seq_idx)[0]

    def forward_directions(
        self,
        x: Float[Tensor, "batch token dim"],
        orders: Sequence[ScanOrder] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        seq_idx: Int[Tensor, "batch token"] | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "direction batch token dim"]]:
        """Return the output and, as the share of the one direction, the output less the bias of `proj`.

        Raises:
            ValueError: there is more than one order, among which attention cannot be split.
        """
        if orders is not None and len(orders) != 1:
            raise ValueError(f"attention cannot be split by direction, got {len(orders)} scan orders")
        mixed = self(x, orders, mask, seq_idx)
        part = mixed if self.proj.bias is None else mixed - self.proj.bias
        return mixed, part[None]

    def prefill(
        self,
        x: Float[Tensor, "batch token dim"],
        mask: Bool[Tensor, "batch token"] | None = None,
        cache: AttentionCache | None = None,
    ) -> tuple[Float[Tensor, "batch token dim"], AttentionCache]:
        """Return the output of `forward`, going on from `cache` if there is one, and the cache after the tokens.

        Raises:
            ValueError: the attention is not causal.
        """
        return self._mix(x, mask, cache=self.empty_cache(x.shape[0]) if cache is None else cache)  # type: ignore[return-value]

    def step(
        self, x: Float[Tensor, "batch dim"], cache: AttentionCache
    ) -> tuple[Float[Tensor, "batch dim"], AttentionCache]:
        """Return the output for one token after those of `cache`, and the cache after it."""
        y, after = self._step_heads(self.qkv(x), cache)
        return self.proj(y), after

    def empty_cache(self, batch_size: int) -> AttentionCache:
        """Return the cache before the first token.

        Raises:
            ValueError: the attention is not causal.
        """
        if not self.causal:
            raise ValueError("decoding goes forward: it needs attention with causal=True")
        keys = self.qkv.weight.new_empty(batch_size, self.kv_heads, 0, self.head_dim)
        none = torch.zeros(batch_size, 0, dtype=torch.long, device=keys.device)
        return AttentionCache.of(keys, keys, none, none.new_zeros(batch_size), padded=False)

    def _mix(
        self, x: Tensor, mask: Tensor | None, seq_idx: Tensor | None = None, cache: AttentionCache | None = None
    ) -> tuple[Tensor, AttentionCache | None]:
        check_width(x, self.qkv.in_features)
        if self.on_grid and seq_idx is not None:
            raise ValueError("tokens of a grid cannot be packed: leave seq_idx out")
        if mask is not None:  # padding may hold anything, and nothing times NaN is NaN
            x = x.masked_fill(~mask[..., None], 0.0)
        y, cache = self._mix_heads(self.qkv(x), mask, seq_idx, cache)
        return self.proj(y), cache

    def _mix_heads(
        self, rows: Tensor, mask: Tensor | None, seq_idx: Tensor | None, cache: AttentionCache | None
    ) -> tuple[Tensor, AttentionCache | None]:
        """Return the weighted values of all heads side by side, from queries, keys and values side by side."""
        query = _Places(*number_tokens(rows, mask, seq_idx))
        if cache is not None:
            place = query.positions + cache.ends[:, None]
            query = _Places(place if mask is None else place.masked_fill(~mask, -1))
        q, k, v = self._heads(rows, query.positions)
        if cache is None:
            y = self._attend(q, k, v, self._allowed(query, query, padded=mask is not None), causal=self.causal)
        else:
            keys, values, positions = (
                torch.cat([old.to(new.dtype), new], -2 if new.dim() == 4 else 1)
                for old, new in zip(cache.last(None), (k, v, query.positions), strict=True)
            )
            padded = cache.padded or mask is not None
            allowed = self._allowed(query, _Places(positions), padded=padded)
            y = self._attend(q, keys, values, allowed, causal=self.causal)
            ends = cache.ends + (rows.shape[1] if mask is None else mask.sum(1))
            cache = AttentionCache.of(*_latest(keys, values, positions, self.window, mask), ends, padded=padded)
        if mask is not None:
            y = y.masked_fill(~mask[..., None], 0.0)
        return y, cache

    def _step_heads(self, row: Tensor, cache: AttentionCache) -> tuple[Tensor, AttentionCache]:
        """Mix one token (batch, channel) in the same way, after those of `cache`."""
        q, k, v = self._heads(row[:, None], place := cache.ends[:, None])
        cache = cache.append(k, v, self.window)
        keys, values, positions = cache.last(self.window)
        allowed = self._allowed(_Places(place), _Places(positions), padded=True) if cache.padded else None
        return self._attend(q, keys.to(q.dtype), values.to(q.dtype), allowed, causal=False)[:, 0], cache

    def _heads(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (batch, head, token, channel) of the tokens at these positions."""
        q, k, v = rows.split(self.sizes, -1)
        if self.qk_norm == "full":
            q, k = self._normed(q, k)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        if self.qk_norm == "head":
            q, k = self._normed(q, k)
        if self.rotary is not None:
            phases = self.rotary.phases(positions, q.dtype)
            q, k = self.rotary.turn(q, phases), self.rotary.turn(k, phases)
        return q, k, v

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        # the norms give the dtype of their weights, which under autocast is not that of the values
        return self.q_norm(q).to(q.dtype), self.k_norm(k).to(k.dtype)  # type: ignore[misc]

    def _allowed(self, query: "_Places", key: "_Places", *, padded: bool) -> Tensor | None:
        """Return True where a query may attend to a key, (batch, query, key); None where `causal` alone decides."""
        # a compiled graph serves all lengths, so it cannot leave the window out for short ones
        window = self.window
        windowed = window is not None and (torch.compiler.is_compiling() or key.positions.shape[1] > window)
        continued = self.causal and key.positions.shape[1] != query.positions.shape[1]
        if not (padded or windowed or continued) and query.texts is None:
            return None
        q, k = query.positions[:, :, None], key.positions[:, None]
        allowed = k >= 0
        if self.causal:
            allowed = allowed & (k <= q)
        if windowed and window is not None:
            allowed = allowed & ((q - k).abs() < window)
        if query.texts is not None and key.texts is not None:
            allowed = allowed & (query.texts[:, :, None] == key.texts[:, None])
        # padding attends to anything, because a softmax over nothing is NaN; its output is dropped
        return allowed | (q < 0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, *, causal: bool) -> Tensor:
        """Return the weighted values of all heads side by side, (batch, query, head channel)."""
        bias = None if allowed is None else allowed[:, None]
        if self.relative_grid is not None and self.relative_bias is not None:
            index = relative_index(self.relative_grid, q.shape[2], q.device)
            relative = self.relative_bias[index].permute(2, 0, 1)[None].to(q.dtype)
            bias = relative if bias is None else relative.masked_fill(~bias, -torch.inf)
        if self.softcap is not None:
            if causal and bias is None:
                bias = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
            y = capped_attention(q, k, v, bias, scale=self.scale, softcap=self.softcap)
        else:
            causal, grouped = causal and bias is None, self.heads != self.kv_heads
            y = F.scaled_dot_product_attention(q, k, v, bias, 0.0, causal, scale=self.scale, enable_gqa=grouped)
        return y.transpose(1, 2).flatten(2)


def _latest(
    keys: Tensor, values: Tensor, positions: Tensor, window: int | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values and positions that the next token may attend to, padding in front of each sequence."""
    if mask is not None:
        order = torch.sort((positions >= 0).to(torch.uint8), dim=1, stable=True).indices
        positions = positions.gather(1, order)
        slots = order[:, None, :, None].expand_as(keys)
        keys, values = keys.gather(2, slots), values.gather(2, slots)
    start = 0 if window is None else max(0, keys.shape[2] - window + 1)
    # a copy where some are left out, because a view would keep them in memory
    return keys[:, :, start:].contiguous(), values[:, :, start:].contiguous(), positions[:, start:]


class _Places(NamedTuple):
    """Places of tokens: their positions, -1 for padding, and the packed text that each belongs to."""

    positions: Tensor
    texts: Tensor | None = None
