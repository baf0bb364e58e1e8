"""Similarity of text and video: CLIP4Clip's three heads, modules from features to a matrix, and the scale.

All heads are called as `head(text, frames, frame_mask, tokens, token_mask)` and give the cosine of every text with
every video. The two with weights of their own start as `MeanPooling`, so that CLIP's alignment is not lost.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.models.stack import BlockStack
from transmamba.nn import CrossMamba, MambaBlock, MambaMixer, init_position
from transmamba.ops import scan_orders

Texts = Float[Tensor, "text dim"]
Tokens = Float[Tensor, "text token dim"]
TokenMask = Bool[Tensor, "text token"]
Frames = Float[Tensor, "video frame dim"]
FrameMask = Bool[Tensor, "video frame"]


def masked_mean(x: Float[Tensor, "*batch token dim"], mask: Bool[Tensor, "*batch2 token"] | None) -> Tensor:
    """Average over the real tokens; zero where there are none."""
    if mask is None:
        return x.mean(-2)
    return x.masked_fill(~mask[..., None], 0).sum(-2) / mask.sum(-1, keepdim=True).clamp_min(1)


def unit(x: Tensor) -> Tensor:
    """Scale `x` to length one along its last axis."""
    return F.normalize(x, dim=-1)


class MeanPooling(nn.Module):
    """Cosine of the text and the mean of the frames, each frame at length one first; blind to the frames' order.

    Reference:
        CLIP4Clip, arXiv 2104.08860, "meanP".

    Example:
        >>> MeanPooling()(torch.ones(2, 5), torch.ones(3, 4, 5)).shape
        torch.Size([2, 3])
    """

    @typed
    def forward(
        self,
        text: Texts,
        frames: Frames,
        frame_mask: FrameMask | None = None,
        tokens: Tokens | None = None,
        token_mask: TokenMask | None = None,
    ) -> Float[Tensor, "text video"]:
        """Compute the cosines. True in `frame_mask` marks a real frame; the tokens of the text are not used."""
        return unit(text) @ unit(masked_mean(unit(frames), frame_mask)).T


class SequentialHead(nn.Module):
    """`MeanPooling` of frames + W temporal(frames), with W zero at the start.

    Args:
        dim: width of the frames.
        temporal: called as `temporal(frames, frame_mask)`, for example `TemporalTransformer` or `TemporalMamba`.

    Reference:
        CLIP4Clip, arXiv 2104.08860, "seqTransf"; the projection that starts at zero is ours.

    Example:
        >>> SequentialHead(8, TemporalMamba(8))(torch.ones(2, 8), torch.ones(3, 4, 8)).shape
        torch.Size([2, 3])
    """

    @typed
    def __init__(self, dim: int, temporal: nn.Module) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.temporal = temporal
        self.proj = nn.Linear(dim, dim, bias=False)
        self.pool = MeanPooling()
        nn.init.zeros_(self.proj.weight)

    @typed
    def forward(
        self,
        text: Texts,
        frames: Frames,
        frame_mask: FrameMask | None = None,
        tokens: Tokens | None = None,
        token_mask: TokenMask | None = None,
    ) -> Float[Tensor, "text video"]:
        """Compute the cosines. True in `frame_mask` marks a real frame; the tokens of the text are not used."""
        return self.pool(text, frames + self.proj(self.temporal(frames, frame_mask)), frame_mask)


class TightHead(nn.Module):
    """`MeanPooling` of frames that have read the text: CrossMamba with Q from the frames; K, V and step from the text.

    Every frame reads the last state that a text leaves behind. That state does not depend on the frame, so all pairs of
    a batch cost one scan per text and one product per frame and text.

    Args:
        dim: width of the frames and of the tokens.
        d_state: states per channel.
        bidirectional: also scan the text from its end.

    Raises:
        ValueError: on the call, if the tokens of the text are missing.

    Reference:
        CLIP4Clip, arXiv 2104.08860, "tightTransf", with the cross-Mamba of 2502.15130 for its Transformer; that frames
        are the query, and the zero start, are ours (docs/decisions.md).

    Example:
        >>> texts = torch.ones(2, 8), torch.ones(2, 6, 8)
        >>> TightHead(8)(texts[0], torch.ones(3, 4, 8), tokens=texts[1]).shape
        torch.Size([2, 3])
    """

    @typed
    def __init__(self, dim: int, *, d_state: int = 16, bidirectional: bool = True) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.norm = nn.LayerNorm(dim)
        self.cross = CrossMamba(dim, dim, d_state=d_state, bidirectional=bidirectional)
        nn.init.zeros_(self.cross.out_proj.weight)

    @typed
    def forward(
        self,
        text: Texts,
        frames: Frames,
        frame_mask: FrameMask | None = None,
        tokens: Tokens | None = None,
        token_mask: TokenMask | None = None,
    ) -> Float[Tensor, "text video"]:
        """Compute the cosines. True in the masks marks real frames and tokens."""
        if tokens is None:
            raise ValueError("the tight head reads the tokens of the text: give tokens, and token_mask if padded")
        videos, length, dim = frames.shape
        # entries of size one, as a norm would give, in the direction that MeanPooling uses
        query = math.sqrt(dim) * unit(frames).flatten(0, 1).expand(text.shape[0], -1, -1)
        read = self.cross(query, self.norm(tokens), token_mask).unflatten(1, (videos, length))
        pooled = unit(masked_mean(read, frame_mask))
        return torch.einsum("td,tvd->tv", unit(text), pooled)


class TemporalTransformer(nn.Module):
    """Position table and pre-norm Transformer over the frames of a video.

    Args:
        dim: width of the frames.
        depth: number of layers.
        heads: attention heads.
        max_frames: rows of the position table.

    Raises:
        ValueError: the heads do not divide the width; on the call, if the frames have another width, or are
            more than there are positions.

    Example:
        >>> TemporalTransformer(8, depth=1, heads=2, max_frames=4)(torch.ones(3, 4, 8)).shape
        torch.Size([3, 4, 8])
    """

    @typed
    def __init__(self, dim: int, *, depth: int = 2, heads: int = 8, max_frames: int = 64) -> None:
        super().__init__()
        check_sizes(dim=dim, depth=depth, heads=heads, max_frames=max_frames)
        if dim % heads:
            raise ValueError(f"heads must divide the width of the frames, got {heads} heads for {dim} channels")
        self.pos_embed = init_position(max_frames, dim)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)

    @typed
    def forward(self, frames: Frames, frame_mask: FrameMask | None = None) -> Frames:
        """Return the frames, each of which depends on all real ones."""
        check_width(frames, self.pos_embed.shape[2], "frames")
        if frames.shape[1] > self.pos_embed.shape[1]:
            raise ValueError(f"built for at most {self.pos_embed.shape[1]} frames, got {frames.shape[1]}")
        padding = None
        if frame_mask is not None:
            # attention over nothing has no value: a video without frames attends to its padding, and is masked later
            padding = ~(frame_mask | ~frame_mask.any(1, keepdim=True))
        return self.layers(frames + self.pos_embed[:, : frames.shape[1]], src_key_padding_mask=padding)


class TemporalMamba(nn.Module):
    """Mamba blocks over the frames of a video, in both directions; any number of frames.

    Args:
        dim: width of the frames.
        depth: number of blocks.
        d_state: states per channel.

    Example:
        >>> TemporalMamba(8)(torch.ones(3, 4, 8)).shape
        torch.Size([3, 4, 8])
    """

    @typed
    def __init__(self, dim: int, *, depth: int = 2, d_state: int = 16) -> None:
        super().__init__()
        check_sizes(dim=dim, depth=depth)
        self.blocks = BlockStack(MambaBlock(dim, MambaMixer(dim, d_state, directions=2)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    @typed
    def forward(self, frames: Frames, frame_mask: FrameMask | None = None) -> Frames:
        """Return the frames, each of which depends on all real ones."""
        orders = scan_orders(("forward", "backward"), frames.shape[1], frames.device)
        return self.norm(self.blocks(frames, orders, frame_mask))


class LogitScale(nn.Module):
    """Multiply similarities by exp(log_scale), a learnt inverse temperature, at most `largest`.

    At the bound the gradient can lower the scale and not raise it: CLIP's clamp of the parameter after each step,
    without a line in the training loop.

    Args:
        start: scale at the start.
        largest: bound of the scale.

    Raises:
        ValueError: the numbers are not 0 < start <= largest.

    Reference:
        CLIP, arXiv 2103.00020.

    Example:
        >>> LogitScale(start=2.0)(torch.ones(1, 1)).item()
        2.0
    """

    @typed
    def __init__(self, start: float = 1 / 0.07, largest: float = 100.0) -> None:
        super().__init__()
        if not 0 < start <= largest:
            raise ValueError(f"expected 0 < start <= largest, got start={start}, largest={largest}")
        self.log_largest = math.log(largest)
        self.log_scale = nn.Parameter(torch.tensor(math.log(start)))

    @typed
    def forward(self, similarity: Float[Tensor, "text video"]) -> Float[Tensor, "text video"]:
        """Scale the similarities."""
        return similarity * _AtMost.apply(self.log_scale, self.log_largest).exp()


class _AtMost(torch.autograd.Function):
    """min(x, bound), whose gradient still brings an x at the bound down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_max(bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient.where((x < ctx.bound) | (gradient > 0), 0), None
