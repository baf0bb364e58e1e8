"""A LLaVA-like model: a vision encoder, a projector, and a Mamba that reads image and text, with CrossMamba between."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transmamba._typing import typed
from transmamba.models.builders import register
from transmamba.models.features import DecayMethods
from transmamba.models.generate import continue_tokens, last_real, next_token
from transmamba.models.mamba_lm import LayerCache, MambaLM
from transmamba.models.patch_encoders import Projector, encoder_width
from transmamba.models.pretrained import Pretrained
from transmamba.models.splice import IGNORE_INDEX, Chosen, Images, Spliced, check_images, join_images, splice
from transmamba.models.splice import IMAGE_TOKEN_INDEX as IMAGE_TOKEN_INDEX
from transmamba.models.stack import reset_children
from transmamba.nn import CrossCache, CrossMamba, CrossMambaBlock, RMSNorm
from transmamba.ops.orders import Grid

Query = Literal["image", "text"]


class VisionLanguageOutput(NamedTuple):
    """Output of a forward pass; a placeholder has become as many tokens as an image has patches.

    Attributes:
        logits: of the token after each token, `(batch, token, vocabulary)`.
        last: the stream after the final norm, `(batch, token, dim)`.
        layers: the stream after each block, and after the CrossMamba block that follows it.
        mask: True marks a real token.
        image: the tokens that are patches, in raster order, image after image.
        labels: the tokens to learn, `IGNORE_INDEX` elsewhere; None if none were given.
        grid: rows and columns of an image's patches; empty if there was no image.
    """

    logits: Float[Tensor, "batch token vocabulary"]
    last: Float[Tensor, "batch token dim"]
    layers: tuple[Float[Tensor, "batch token dim"], ...]
    mask: Bool[Tensor, "batch token"]
    image: Bool[Tensor, "batch token"]
    labels: Int[Tensor, "batch token"] | None
    grid: Grid

    def loss(self) -> Float[Tensor, ""]:
        """Compute the cross-entropy of the labels, each predicted from the tokens before it; mean over the labels.

        Raises:
            ValueError: the pass had no labels.
        """
        if self.labels is None:
            raise ValueError("no labels to learn from: pass labels=... to the model")
        return F.cross_entropy(self.logits[:, :-1].flatten(0, 1), self.labels[:, 1:].flatten())

    def answers(self) -> Bool[Tensor, "batch token"]:
        """Mark the tokens whose logits predict a label, at which logits are to be distilled.

        Raises:
            ValueError: the pass had no labels.
        """
        if self.labels is None:
            raise ValueError("no labels mark the answers: pass labels=... to the model")
        return F.pad(self.labels[:, 1:] != IGNORE_INDEX, (0, 1))


class VisionLanguageCache(NamedTuple):
    """State kept between decoded tokens: that of every block, and that read by text, by CrossMamba block."""

    blocks: tuple[LayerCache, ...]
    contexts: tuple[CrossCache, ...]


def cross_block(dim: int) -> CrossMambaBlock:
    """Build the block to stack in: CrossMamba over the whole context from both ends, and an MLP."""
    return CrossMambaBlock(dim, dim, CrossMamba(dim, dim, bidirectional=True, residual=False), norm=RMSNorm)


@register
class VisionLanguageMamba(Pretrained, DecayMethods, nn.Module):
    """Patches, projected, stand in the text like words; after chosen blocks one modality reads the other.

    With `query="image"` the patches read the question (language awareness in visual features: Q is visual; K, V and
    step size are text), so that the next blocks carry on those parts of the image that the question concerns. With
    `query="text"` every text token reads all images of its sample. Both sides are tokens of the stream at that depth.
    The CrossMamba blocks start as the identity, so that an inherited language model starts as it was.

    Args:
        vision: maps images to (tokens, grid) and has a width `dim`: `ClipPatches`, `BackbonePatches`, or your own.
        language: a Mamba or Mamba-2 language model.
        cross_after: blocks that are followed by a CrossMamba block; none leaves an ordinary LLaVA on Mamba.
        query: the modality that reads.
        cross: builds a CrossMamba block from a width.

    Raises:
        TypeError: the vision encoder has no attribute for its width.
        ValueError: a block of `cross_after` does not exist, or patches would read after the last block, where nothing
            reads them any more.

    Reference:
        Sections on cross-Mamba and on LLaVA of arXiv 2502.15130; LLaVA, arXiv 2304.08485. The choice of query and
        context, and the places of the blocks, are ours (docs/decisions.md).

    Example:
        >>> from transmamba.models import BackbonePatches, VisionMamba
        >>> vision = BackbonePatches(VisionMamba(8, 4, dim=12, depth=1), 12)
        >>> model = VisionLanguageMamba(vision, MambaLM(11, 16, depth=2), cross_after=[0])
        >>> ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 2, 3]])
        >>> model.generate(ids, [torch.zeros(1, 3, 8, 8)], 5).shape
        torch.Size([1, 5])
    """

    @typed
    def __init__(
        self,
        vision: nn.Module,
        language: MambaLM,
        *,
        cross_after: Sequence[int] = (),
        query: Query = "image",
        cross: Callable[[int], nn.Module] = cross_block,
    ) -> None:
        super().__init__()
        _check_places(cross_after, query, len(language.blocks))
        if language.pos_embed is not None:
            raise ValueError(
                "language has learned positions, which images between the words would use up: expected none"
            )
        dim = language.embedding.embedding_dim
        self.vision: Any = vision
        self.projector = Projector(encoder_width(vision), dim)
        self.language = language
        self.cross = nn.ModuleDict({str(i): cross(dim) for i in cross_after})
        self.query: Query = query
        self._start_as_identity()

    @typed
    def forward(
        self,
        ids: Int[Tensor, "batch text"],
        images: Images,
        mask: Bool[Tensor, "batch text"] | None = None,
        labels: Int[Tensor, "batch text"] | None = None,
    ) -> VisionLanguageOutput:
        """Compute logits and every layer's stream, images in the place of their placeholders, padded on the right.

        Args:
            ids: tokens; `IMAGE_TOKEN_INDEX` stands for an image.
            images: a tensor per sample, of as many images as the sample has placeholders; or one tensor for all,
                `(sample, image, channel, height, width)`, with which lengths follow from the shapes alone.
            mask: True marks a real token.
            labels: tokens to learn, `IGNORE_INDEX` on the prompt. Patches read the text before the first label.

        Raises:
            ValueError: the numbers of placeholders and images differ; or patches read without labels, in which case
                they would read the answers too.
        """
        if labels is None and len(self.cross) and self.query == "image":
            raise ValueError(
                "patches read the question, and without labels an answer is part of it: pass labels=..., "
                "or prefill(...) for a prompt without answer"
            )
        spliced, grid = self.splice(ids, images, mask, labels)
        reader, context = self._sides(spliced)
        x, layers = spliced.tokens, []
        for i, block in enumerate(self.language.blocks):
            x = self.language.blocks.run(block, x, None, spliced.mask)
            if str(i) in self.cross:
                read = self.cross[str(i)](reader.take(x), context.take(x), context.mask)
                x = reader.put(x, read)
            layers.append(x)
        last = self.language.norm(x)
        streams = self._logits(last), last, tuple(layers)
        return VisionLanguageOutput(*streams, spliced.mask, spliced.image, spliced.labels, grid)

    @typed
    def prefill(
        self, ids: Int[Tensor, "batch text"], images: Images, mask: Bool[Tensor, "batch text"] | None = None
    ) -> tuple[Float[Tensor, "batch vocabulary"], VisionLanguageCache]:
        """Read the prompts with all their text; return the logits after each one's last token, and the new cache."""
        spliced, _ = self.splice(ids, images, mask, padding="left")
        reader, context = self._sides(spliced)
        x, caches, contexts = spliced.tokens, [], []
        for i, block in enumerate(self.language.blocks):
            x, after = block.prefill(x, spliced.mask, None)
            caches.append(after)
            if str(i) in self.cross:
                cross: Any = self.cross[str(i)]
                if self.query == "text":
                    contexts.append(cross.prefill(context.take(x), context.mask))
                    x = reader.put(x, cross.read(reader.take(x), contexts[-1]))
                else:
                    x = reader.put(x, cross(reader.take(x), context.take(x), context.mask))
        logits = self._logits(self.language.norm(last_real(x, spliced.mask)))
        return logits, VisionLanguageCache(tuple(caches), tuple(contexts))

    @typed
    def step(
        self, ids: Int[Tensor, " batch"], cache: VisionLanguageCache
    ) -> tuple[Float[Tensor, "batch vocabulary"], VisionLanguageCache]:
        """Read one more text token per sequence; return the logits after it, and the cache after it."""
        x, caches, contexts = self.language.embed(ids), [], iter(cache.contexts)
        for i, (block, before) in enumerate(zip(self.language.blocks, cache.blocks, strict=True)):
            x, after = block.step(x, before)
            caches.append(after)
            if str(i) in self.cross and self.query == "text":
                cross: Any = self.cross[str(i)]
                x = cross.step(x, next(contexts))
        return self._logits(self.language.norm(x)), VisionLanguageCache(tuple(caches), cache.contexts)

    @typed
    @torch.no_grad()
    def generate(
        self,
        ids: Int[Tensor, "batch text"],
        images: Images,
        max_new_tokens: int,
        *,
        mask: Bool[Tensor, "batch text"] | None = None,
        stop_tokens: Sequence[int] = (),
        pad_token: int = 0,
        **sampling: Any,
    ) -> Int[Tensor, "batch new"]:
        """Generate continuations, returned without the prompts, because a prompt holds placeholders.

        Args:
            ids: prompts, padded on either side.
            images: one tensor per sample.
            max_new_tokens: tokens to add at most.
            mask: True marks a real token of a prompt.
            stop_tokens: each ends its sequence.
            pad_token: token that fills up a sequence that has ended.
            sampling: `temperature`, `top_k`, `top_p` and `generator` of `next_token`; greedy by default.
        """
        logits, cache = self.prefill(ids, images, mask)
        options: Any = {"max_new_tokens": max_new_tokens, "stop_tokens": stop_tokens, "pad_token": pad_token}
        return continue_tokens(logits, cache, self.step, lambda x: next_token(x, **sampling), **options)

    def splice(
        self,
        ids: Int[Tensor, "batch text"],
        images: Images,
        mask: Bool[Tensor, "batch text"] | None = None,
        labels: Int[Tensor, "batch text"] | None = None,
        padding: Literal["left", "right"] = "right",
    ) -> tuple[Spliced, Grid]:
        """Build the input of the first block, and the grid of the patches.

        Raises:
            ValueError: placeholders and images do not fit.
        """
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        check_images(ids, mask, images)
        text = self.language.embed(ids.clamp_min(0))
        if (pixels := join_images(images)) is None:
            patches, grid = text.new_zeros(0, 1, text.shape[2]), ()
        else:
            seen, grid = self.vision(pixels)
            patches = self.projector(seen)
        return splice(ids, text, patches, mask, labels, padding, images), grid

    def reset_parameters(self) -> None:
        """Draw the initial values again, except in the vision encoder, which is meant to be loaded."""
        self.language.reset_parameters()
        reset_children(self.cross)
        self.projector.reset_parameters()
        self._start_as_identity()

    @torch.no_grad()
    def _start_as_identity(self) -> None:
        """Zero the output layers so that new blocks start as the identity."""
        for block in cast(Iterable[Any], self.cross.values()):
            nn.init.zeros_(block.mixer.out_proj.weight)
            if block.mlp is not None:
                nn.init.zeros_(block.mlp.fc2.weight)
                nn.init.zeros_(block.mlp.fc2.bias)

    def _sides(self, spliced: Spliced) -> tuple[Chosen, Chosen]:
        """Return the tokens that read, and those that are read."""
        words, patches = spliced.most or (None, None)
        image = Chosen.of(spliced.image, patches)
        if self.query == "image":
            return image, Chosen.of(spliced.question, words)
        return Chosen.of(spliced.mask & ~spliced.image, words), image

    def _logits(self, x: Tensor) -> Tensor:
        return self.language.forward_head(x)[..., : self.language.vocab_size]


def _check_places(cross_after: Sequence[int], query: str, depth: int) -> None:
    last = depth - 2 if query == "image" else depth - 1
    for i in cross_after:
        if not 0 <= i <= last:
            why = ", because nothing reads the patches after the last block" if i == depth - 1 else ""
            raise ValueError(f"no CrossMamba block can follow block {i}: expected 0 to {last} of {depth}{why}")
