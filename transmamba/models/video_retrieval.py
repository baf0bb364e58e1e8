"""Text-video retrieval: two encoders, a head that compares, a learnt temperature.

    retriever = VideoRetriever(PooledText(MambaEncoder(...), ...), MambaFrames(VideoMamba(...), ...), MeanPooling())
    teacher = clip4clip(transformers.CLIPModel.from_pretrained(...))
    teacher(ids, clips, token_mask) -> [text video], to be compared in `distill.ContrastiveLoss`

A text encoder is called as `text(ids, token_mask)` and gives `TextFeatures`; a video encoder as `video(clips,
frame_mask)` and gives one vector per frame; heads are in `retrieval_heads`. Both vectors have one width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import check_sizes, check_width, typed
from transmamba.models.features import Features
from transmamba.models.patch_encoders import check_filled, clip_parts
from transmamba.models.retrieval_heads import LogitScale, MeanPooling, masked_mean
from transmamba.models.video_mamba import VideoMamba
from transmamba.ops import scan_orders

Clips = Float[Tensor, "video channel frame height width"]
# a tubelet may hold several frames of a clip, which leaves fewer vectors and masks than frames
Frames = Float[Tensor, "video step dim"]
FrameMask = Bool[Tensor, "video step"]
Ids = Int[Tensor, "text token"]
TokenMask = Bool[Tensor, "text token"]


class TextFeatures(NamedTuple):
    """A text as one vector, `(text, dim)`, and its tokens in the same space, `(text, token, dim)`."""

    pooled: Tensor
    tokens: Tensor


class VideoFeatures(NamedTuple):
    """One vector per frame, `(video, frame, dim)`, and the tokens they are made of."""

    frames: Tensor
    features: Features


class VideoRetriever(nn.Module):
    """Text encoder, video encoder, head and temperature.

    Args:
        text: from ids and mask to `TextFeatures`.
        video: from clips and mask to frames.
        head: one of `retrieval_heads`, `MeanPooling()` by default.
        scale: the learnt temperature, `LogitScale()` by default.

    Example:
        >>> from transmamba.models import MambaEncoder
        >>> text = PooledText(MambaEncoder(11, 8, depth=1), 8, 6)
        >>> video = MambaFrames(VideoMamba(8, 4, num_frames=3, dim=12, depth=1, num_classes=0), 6)
        >>> VideoRetriever(text, video)(torch.ones(2, 5, dtype=torch.int), torch.zeros(4, 3, 3, 8, 8)).shape
        torch.Size([2, 4])
    """

    @typed
    def __init__(
        self, text: nn.Module, video: nn.Module, head: nn.Module | None = None, *, scale: LogitScale | None = None
    ) -> None:
        super().__init__()
        self.text, self.video = text, video
        self.head = MeanPooling() if head is None else head
        self.scale = LogitScale() if scale is None else scale

    @typed
    def forward(
        self, ids: Ids, clips: Clips, token_mask: TokenMask | None = None, frame_mask: FrameMask | None = None
    ) -> Float[Tensor, "text video"]:
        """Compute the scaled similarity of each text with each clip. True in the masks marks real tokens and frames."""
        return self.similarity(self.text(ids, token_mask), self.video(clips, frame_mask), token_mask, frame_mask)

    @typed
    def similarity(
        self,
        text: TextFeatures,
        frames: Frames,
        token_mask: TokenMask | None = None,
        frame_mask: FrameMask | None = None,
        *,
        chunk: int | None = None,
    ) -> Float[Tensor, "text video"]:
        """Compute the same from features, which may come from a cache or from all processes (`distill.gather_batch`).

        Args:
            text: output of the text encoder.
            frames: output of the video encoder.
            token_mask: real tokens.
            frame_mask: real frames.
            chunk: compare this many texts at a time; for `TightHead`, whose memory grows with texts x frames.

        Raises:
            ValueError: a mask does not have the shape of its frames or tokens.
        """
        for name, mask, x in (("frame_mask", frame_mask, frames), ("token_mask", token_mask, text.tokens)):
            if mask is not None and mask.shape != x.shape[:2]:
                raise ValueError(f"{name} has shape {tuple(mask.shape)}, its frames or tokens {tuple(x.shape[:2])}")
        if chunk is None:
            return self.scale(self.head(text.pooled, frames, frame_mask, text.tokens, token_mask))
        masks = [None] * -(-len(text.pooled) // chunk) if token_mask is None else token_mask.split(chunk)
        parts = zip(text.pooled.split(chunk), text.tokens.split(chunk), masks, strict=True)
        rows = [self.head(pooled, frames, frame_mask, tokens, mask) for pooled, tokens, mask in parts]
        return self.scale(torch.cat(rows))


class PooledText(nn.Module):
    """Any text encoder from ids and mask to tokens, such as `MambaEncoder`: tokens and their mean, projected.

    Args:
        encoder: called as `encoder(ids, mask)`.
        width: width of its tokens.
        dim: width of the space shared with the videos.
    """

    @typed
    def __init__(self, encoder: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        check_sizes(width=width, dim=dim)
        self.encoder = encoder
        self.proj = nn.Linear(width, dim, bias=False)

    @typed
    def forward(self, ids: Ids, token_mask: TokenMask | None = None) -> TextFeatures:
        """Encode the text; True in the mask marks a real token."""
        tokens = self.encoder(ids, token_mask)
        check_width(tokens, self.proj.in_features, "output of the encoder")
        tokens = self.proj(tokens)
        return TextFeatures(masked_mean(tokens, token_mask), tokens)


class MambaFrames(nn.Module):
    """VideoMamba as an encoder of frames: class token plus the mean patch of each frame, normed and projected.

    Args:
        encoder: a clip model; its head is not used.
        dim: width of the space shared with the texts.

    Reference:
        The pooling of VideoMamba's retrieval models (`VideoTextMamba`), per frame.

    Example:
        >>> encoder = VideoMamba(8, 4, num_frames=3, dim=12, depth=2, num_classes=0)
        >>> MambaFrames(encoder, 6)(torch.zeros(2, 3, 3, 8, 8)).shape
        torch.Size([2, 3, 6])
    """

    @typed
    def __init__(self, encoder: VideoMamba, dim: int) -> None:
        super().__init__()
        check_sizes(dim=dim)
        width = encoder.cls_token.shape[-1]
        self.encoder = encoder
        self.pool_norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, dim, bias=False)

    @typed
    def forward(self, clips: Clips, frame_mask: FrameMask | None = None) -> Frames:
        """Return one vector per frame (per tubelet, if longer); padded frames influence no other."""
        return self.forward_features(clips, frame_mask).frames

    @typed
    def forward_features(
        self, clips: Clips, frame_mask: FrameMask | None = None, *, directions: bool = False
    ) -> VideoFeatures:
        """Return frames and tokens, class token first; with `directions` each direction's share of every mixer output.

        Raises:
            ValueError: the clips have another size than the encoder, or the mask another number of frames.
        """
        tokens, (frames, rows, columns) = self.encoder.embed(clips), self.encoder.grid
        mask = None
        if frame_mask is not None:
            if frame_mask.shape[1] != frames:
                raise ValueError(f"frame_mask has {frame_mask.shape[1]} frames, the encoder's grid {frames}")
            mask = torch.cat([torch.ones_like(frame_mask[:, :1]), frame_mask.repeat_interleave(rows * columns, 1)], 1)
        orders = scan_orders(("forward", "backward"), tokens.shape[1], clips.device)
        layers, shares = self.encoder.blocks.streams(tokens, orders, mask, directions=directions)
        last = self.encoder.norm(layers[-1])
        patches = last[:, 1:].unflatten(1, (frames, rows * columns)).mean(2)
        pooled = self.proj(self.pool_norm(last[:, :1] + patches))
        return VideoFeatures(pooled, Features(last, layers, self.encoder.grid, shares, tuple(orders), (0,)))


class ClipText(nn.Module):
    """The text side of a Hugging Face `CLIPModel`; the end token stands for the text.

    Raises:
        TypeError: the model has no text side.
        ValueError: on the call, if there is nothing to read.
    """

    @typed
    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.encoder, self.proj = clip_parts(clip, "text_model", "text_projection")

    @typed
    def forward(self, ids: Ids, token_mask: TokenMask | None = None) -> TextFeatures:
        """Encode the text; True in the mask marks a real token."""
        check_filled(ids, "ids")
        out = self.encoder(input_ids=ids, attention_mask=None if token_mask is None else token_mask.long())
        return TextFeatures(self.proj(out.pooler_output), self.proj(out.last_hidden_state))


class ClipFrames(nn.Module):
    """The image side of a Hugging Face `CLIPModel`, which encodes every frame by itself.

    Raises:
        TypeError: the model has no image side.
        ValueError: on the call, if there is nothing to see.
    """

    @typed
    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.encoder, self.proj = clip_parts(clip, "vision_model", "visual_projection")

    @typed
    def forward(self, clips: Clips, frame_mask: FrameMask | None = None) -> Frames:
        """Return one vector per frame; a padded one has a vector too, which the head leaves out."""
        check_filled(clips, "clips")
        out = self.encoder(pixel_values=clips.transpose(1, 2).flatten(0, 1))
        return self.proj(out.pooler_output).unflatten(0, (len(clips), -1))

    @typed
    def forward_features(self, clips: Clips, frame_mask: FrameMask | None = None) -> VideoFeatures:
        """Return frames, and the patch tokens of all frames in VideoMamba's order; class tokens are left out."""
        check_filled(clips, "clips")
        out = self.encoder(pixel_values=clips.transpose(1, 2).flatten(0, 1), output_hidden_states=True)
        last, *layers = (
            tokens[:, 1:].unflatten(0, (len(clips), -1)).flatten(1, 2)
            for tokens in (self.encoder.post_layernorm(out.last_hidden_state), *out.hidden_states[1:])
        )
        size = self.encoder.config.patch_size
        grid = (clips.shape[2], clips.shape[3] // size, clips.shape[4] // size)
        frames = self.proj(out.pooler_output).unflatten(0, (len(clips), -1))
        return VideoFeatures(frames, Features(last, tuple(layers), grid))


@typed
def clip4clip(clip: nn.Module, head: nn.Module | None = None) -> VideoRetriever:
    """Build a video retriever from a Hugging Face `CLIPModel`: it shares the weights and copies the temperature.

    Args:
        clip: the model, for instance `CLIPModel.from_pretrained("openai/clip-vit-base-patch32")`.
        head: one of `retrieval_heads`, `MeanPooling()` by default.

    Raises:
        TypeError: the model is not a `CLIPModel`.

    Reference:
        CLIP4Clip, arXiv 2104.08860.
    """
    (released,) = clip_parts(clip, "logit_scale")
    # a released scale may lie a rounding error above its bound
    start = min(released.detach().exp().item(), 100.0)
    return VideoRetriever(ClipText(clip), ClipFrames(clip), head, scale=LogitScale(start))
