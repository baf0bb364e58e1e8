"""Caches: the tensors that a mixer keeps between the tokens it decodes."""

from typing import NamedTuple

import torch
from torch import Tensor


class MixerCache(NamedTuple):
    """The state of one mixer after some tokens.

    Attributes:
        conv: the last inputs of the convolution, newest last, `(batch, channel, d_conv)`; zero before the start.
        state: `(batch, inner, state)` for Mamba, `(batch, head, channel, state)` for Mamba-2; float32 or float64.
    """

    conv: Tensor
    state: Tensor

    # a method, because the dynamo of older torches cannot read properties of named tuples
    def before(self) -> Tensor:
        """Return the tokens that a continued convolution still covers, `(batch, direction, d_conv - 1, channel)`."""
        return inputs_before(self.conv)

    def last_inputs(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return `conv` after the tokens `x` (batch, token, channel), of which `mask` marks the real ones."""
        return last_inputs(self.conv, x, mask)


class CrossCache(NamedTuple):
    """The state that a `CrossMamba` keeps of a context; reading does not change it.

    Attributes:
        state: the state after the last context token, `(batch, direction, inner, state)`; float32 or float64.
    """

    state: Tensor


class AttentionCache(NamedTuple):
    """The keys and values of some tokens, in buffers with room for more.

    Caches share buffers: a step writes behind the tokens of the cache that it was given, which therefore stays valid.
    The first step from a cache takes the room behind it; another one from the same cache copies the buffers.

    Attributes:
        keys: `(batch, head, slot, channel)`; of a windowed layer the last ones only.
        values: likewise.
        positions: `(batch, slot)`; -1 marks padding.
        ends: real tokens so far, `(batch,)`: the position of the next one.
        length: slots that belong to this cache.
        padded: some of them may be padding.
        written: slots that any cache has written into these buffers.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    ends: Tensor
    length: int
    padded: bool
    written: list[int]

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, positions: Tensor, ends: Tensor, *, padded: bool) -> "AttentionCache":
        """Hold these tokens, without room for more."""
        length = keys.shape[2]
        return cls(keys, values, positions, ends, length, padded, [length])

    def last(self, count: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys, values and positions of the last `count` tokens, or of all."""
        start = 0 if count is None else max(0, self.length - count)
        slots = slice(start, self.length)
        return self.keys[:, :, slots], self.values[:, :, slots], self.positions[:, slots]

    def append(self, key: Tensor, value: Tensor, window: int | None) -> "AttentionCache":
        """Add one real token (batch, head, 1, channel) to every sequence, in place if there is room."""
        keep = None if window is None else window - 1
        positions, ends = self.ends[:, None], self.ends + 1
        if key.requires_grad or value.requires_grad:  # autograd keeps the values read: none may be overwritten
            keys, values, before = self.last(keep)
            keys, values = (torch.cat([x.to(y.dtype), y], -2) for x, y in ((keys, key), (values, value)))
            return AttentionCache.of(keys, values, torch.cat([before, positions], 1), ends, padded=self.padded)
        cache = self if self.written[0] == self.length < self.keys.shape[2] else self._with_room(keep, key.dtype)
        slot = cache.length
        for buffer, new in ((cache.keys, key), (cache.values, value)):
            buffer[:, :, slot : slot + 1] = new
        cache.positions[:, slot : slot + 1] = positions
        cache.written[0] = slot + 1
        return cache._replace(length=slot + 1, ends=ends)

    def _with_room(self, keep: int | None, dtype: torch.dtype) -> "AttentionCache":
        """Copy the last `keep` tokens, or all, to buffers of twice the size."""
        keys, values, positions = self.last(keep)
        length = keys.shape[2]
        room = max(16, 2 * length)
        buffers = []
        for old in (keys.to(dtype), values.to(dtype)):
            buffers.append(old.new_empty(*old.shape[:2], room, old.shape[3]))
            buffers[-1][:, :, :length] = old
        numbers = positions.new_zeros(len(positions), room)
        numbers[:, :length] = positions
        return AttentionCache(buffers[0], buffers[1], numbers, self.ends, length, self.padded, [length])


class ConvolvedCache(NamedTuple):
    """Tensors that `ConvolvedAttention` keeps between tokens.

    Attributes:
        conv: the last inputs of its convolution as in `MixerCache`; its last axis is empty if there is none.
        attention: keys and values after the convolution.
    """

    conv: Tensor
    attention: AttentionCache


def inputs_before(conv: Tensor) -> Tensor:
    """Return the tokens that a continued convolution still covers, `(batch, direction, d_conv - 1, channel)`."""
    return conv[..., 1:].transpose(1, 2)[:, None]


def last_inputs(conv: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the inputs to keep after the tokens `x` (batch, token, channel), of which `mask` marks the real ones."""
    width = conv.shape[-1]
    seen = torch.cat([conv.transpose(1, 2), x], 1)
    if mask is None:
        return seen[:, seen.shape[1] - width :].transpose(1, 2)
    ends = (mask * torch.arange(1, x.shape[1] + 1, device=x.device)).amax(1)
    window = ends[:, None] + torch.arange(width, device=x.device)
    return seen.gather(1, window[..., None].expand(-1, -1, x.shape[2])).transpose(1, 2)
