"""The attention of mamba_ssm's hybrid language models: a short convolution before the heads, an MLP beside them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.nn.attention import Attention
from transmamba.nn.cache import ConvolvedCache, inputs_before, last_inputs
from transmamba.nn.rotary import Rope
from transmamba.ops import causal_conv1d, conv_step


class ConvolvedAttention(Attention):
    """qkv -> causal convolution -> causal attention by heads, beside a gated MLP -> proj.

    Args:
        d_model: width of the tokens.
        heads: query heads.
        kv_heads: key and value heads; `heads` by default.
        head_dim: channels of a head; d_model / heads by default.
        d_conv: width of the convolution over queries, keys and values; None leaves it out.
        hidden_dim: width of an MLP that shares both projections, value silu(gate); none by default.
        qkv_bias: bias of `qkv`.
        out_bias: bias of `proj`.
        rope: rotary positions, see `nn.rotary.Rotary`.
        scale: factor of the scores; head_dim ** -0.5 by default.

    Raises:
        ValueError: heads do not divide the width, or key heads not the heads.

    Reference:
        `MHA` of mamba_ssm, the attention layers of mamba2attn-2.7b. Its decoding keeps outputs of the convolution where
        it needs the inputs; here decoding and the parallel pass agree.

    Example:
        >>> ConvolvedAttention(8, heads=2, d_conv=4, hidden_dim=16)(torch.zeros(2, 5, 8)).shape
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
        d_conv: int | None = None,
        hidden_dim: int = 0,
        qkv_bias: bool = True,
        out_bias: bool = True,
        rope: Rope | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__(d_model, heads, kv_heads=kv_heads, head_dim=head_dim, causal=True, rope=rope, scale=scale)
        check_sizes(d_conv=d_conv, hidden_dim=hidden_dim or None)
        width = sum(self.sizes)
        self.beside = [width, hidden_dim, hidden_dim]
        self.qkv = nn.Linear(d_model, sum(self.beside), bias=qkv_bias)
        self.conv1d = None if d_conv is None else nn.Conv1d(width, width, d_conv, groups=width)
        self.proj = nn.Linear(self.sizes[0] + hidden_dim, d_model, bias=out_bias)

    def empty_cache(self, batch_size: int) -> ConvolvedCache:  # type: ignore[override]
        """Return the cache before the first token."""
        taps = 0 if self.conv1d is None else self.conv1d.weight.shape[-1]
        conv = self.qkv.weight.new_zeros(batch_size, self.beside[0], taps)
        return ConvolvedCache(conv, super().empty_cache(batch_size))

    def step(self, x: Tensor, cache: ConvolvedCache) -> tuple[Tensor, ConvolvedCache]:  # type: ignore[override]
        """Return the output for one token (batch, dim) after those of `cache`, and the cache after it."""
        rows, mlp = self._project(x)
        conv = cache.conv
        if self.conv1d is not None:
            rows, conv = conv_step(conv, rows, self.conv1d.weight[:, 0], self.conv1d.bias)
        y, attention = self._step_heads(rows, cache.attention)
        return self.proj(torch.cat([y, mlp], -1)), ConvolvedCache(conv, attention)

    def _mix(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None, seq_idx: Tensor | None = None, cache: ConvolvedCache | None = None
    ) -> tuple[Tensor, ConvolvedCache | None]:
        check_width(x, self.qkv.in_features)
        # padding may hold anything, and neither it nor the bias may reach real tokens through the convolution
        x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        rows, mlp = self._project(x)
        if mask is not None:
            rows, mlp = (t.masked_fill(~mask[..., None], 0.0) for t in (rows, mlp))
        convolved = rows
        if self.conv1d is not None:
            before = None if cache is None else inputs_before(cache.conv).to(rows.dtype)
            kernel, bias = self.conv1d.weight[None, :, 0], self.conv1d.bias
            assert bias is not None
            convolved = causal_conv1d(rows, kernel, bias[None], seq_idx=seq_idx, initial_tokens=before)[:, 0]
        y, attention = self._mix_heads(convolved, mask, seq_idx, None if cache is None else cache.attention)
        mixed = self.proj(torch.cat([y, mlp], -1))
        if cache is None or attention is None:
            return mixed, None
        return mixed, ConvolvedCache(last_inputs(cache.conv, rows, mask), attention)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries, keys and values side by side, and the MLP beside them."""
        rows, value, gate = self.qkv(x).split(self.beside, -1)
        return rows, value * F.silu(gate)
