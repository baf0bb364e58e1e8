"""What a mixer keeps between the tokens it decodes."""

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
        """The tokens that a continued convolution still sees, `(batch, direction, d_conv - 1, channel)`."""
        return self.conv[..., 1:].transpose(1, 2)[:, None]

    def last_inputs(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`conv` after the tokens `x` (batch, token, channel), of which `mask` says which are real."""
        width = self.conv.shape[-1]
        seen = torch.cat([self.conv.transpose(1, 2), x], 1)
        if mask is None:
            return seen[:, seen.shape[1] - width :].transpose(1, 2)
        ends = (mask * torch.arange(1, x.shape[1] + 1, device=x.device)).amax(1)
        window = ends[:, None] + torch.arange(width, device=x.device)
        return seen.gather(1, window[..., None].expand(-1, -1, x.shape[2])).transpose(1, 2)


class CrossCache(NamedTuple):
    """What a `CrossMamba` keeps of a context; reading does not change it.

    Attributes:
        state: the state after the last context token, `(batch, direction, inner, state)`; float32 or float64.
    """

    state: Tensor
