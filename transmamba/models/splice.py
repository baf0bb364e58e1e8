"""Image tokens between text tokens, by LLaVA's conventions."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IMAGE_TOKEN_INDEX = -200
IGNORE_INDEX = -100

# one entry per sample, or one tensor if all samples have the same number of images
Images = Sequence[Float[Tensor, "_ channel height width"]] | Float[Tensor, "_ _ channel height width"]


class Spliced(NamedTuple):
    """Inputs of a language model; every tensor but the tokens is `(batch, token)`.

    Attributes:
        tokens: embedded text and projected patches, `(batch, token, dim)`.
        mask: True marks a real token.
        image: the tokens that are patches.
        question: text up to the first label, or all text: the tokens that may be read before an answer is given.
        labels: the tokens to learn, `IGNORE_INDEX` on images, padding and prompts; None if none were given.
        most: text tokens and patches that a sample has at most, where the shapes alone give them; otherwise None.
    """

    tokens: Float[Tensor, "batch token dim"]
    mask: Bool[Tensor, "batch token"]
    image: Bool[Tensor, "batch token"]
    question: Bool[Tensor, "batch token"]
    labels: Int[Tensor, "batch token"] | None
    most: tuple[int, int] | None


def splice(
    ids: Int[Tensor, "batch text"],
    text: Float[Tensor, "batch text dim"],
    patches: Float[Tensor, "image patch dim"],
    mask: Bool[Tensor, "batch text"],
    labels: Int[Tensor, "batch text"] | None,
    padding: Literal["left", "right"],
    images: Images = (),
) -> Spliced:
    """Put the patches of image n in the place of placeholder n, and pad again.

    The result is as long as the longest sample or, if `images` are one tensor, as a sample whose text is not padded.
    Every token takes `width` places, a placeholder as many as an image has patches and padding none; place j of the
    result belongs to the first token whose places end behind j.
    """
    placeholder = (ids == IMAGE_TOKEN_INDEX) & mask
    width = torch.where(placeholder, patches.shape[1], 1) * mask
    end = width.cumsum(1)
    total = end[:, -1:]
    most = None
    if isinstance(images, Tensor):
        most = ids.shape[1] - images.shape[1], images.shape[1] * patches.shape[1]
    length = int(total.max()) if most is None else sum(most)
    place = torch.arange(length, device=ids.device).expand(ids.shape[0], -1)
    place = place - (length - total if padding == "left" else 0)
    real = (place >= 0) & (place < total)
    source = torch.searchsorted(end, place.clamp_min(0).contiguous(), right=True).clamp_max(ids.shape[1] - 1)
    image = placeholder.gather(1, source) & real
    tokens = text.gather(1, source[..., None].expand(-1, -1, text.shape[2]))
    # both sides are in the order of the samples, and within them of the text
    tokens = tokens.masked_scatter(image[..., None], patches.to(tokens.dtype))
    question = real & ~image
    if labels is not None:
        labels = labels.gather(1, source).masked_fill(~question, IGNORE_INDEX)
        question = question & ((labels != IGNORE_INDEX).cumsum(1) == 0)
    return Spliced(tokens, real, image, question, labels, most)


def check_images(ids: Int[Tensor, "batch text"], mask: Bool[Tensor, "batch text"], images: Images) -> None:
    """Refuse samples whose placeholders and images do not fit.

    Raises:
        TypeError: an entry is not a tensor.
        ValueError: there is not one entry of images per sample, one that has not as many images as placeholders, or
            images of several sizes.
    """
    if (entries := images.shape[0] if isinstance(images, Tensor) else len(images)) != ids.shape[0]:
        raise ValueError(
            f"images has {entries} entries for {ids.shape[0]} samples: give one tensor (image, channel, height, width) "
            "per sample, an empty one where there is no image"
        )
    counts = ((ids == IMAGE_TOKEN_INDEX) & mask).sum(1)
    if isinstance(images, Tensor) and torch.compiler.is_compiling():
        # the values are not known yet: the compiled program makes the check
        torch._assert_async(
            (counts == images.shape[1]).all(), f"a sample needs one placeholder ({IMAGE_TOKEN_INDEX}) per image"
        )
        return
    for sample, (count, own) in enumerate(zip(counts.tolist(), images, strict=True)):
        if not isinstance(own, Tensor) or own.dim() != 4:
            raise TypeError(f"images of sample {sample} are a {type(own).__name__}: expected a tensor of four axes")
        if count != len(own):
            raise ValueError(
                f"sample {sample} has {count} image placeholders ({IMAGE_TOKEN_INDEX}) and {len(own)} images: "
                "each placeholder stands for one image"
            )
        if own.shape[1:] != images[0].shape[1:]:
            raise ValueError(
                f"images of sample {sample} have shape {tuple(own.shape[1:])}, those of sample 0 "
                f"{tuple(images[0].shape[1:])}: resize all to one size"
            )


def join_images(images: Images) -> Float[Tensor, "image channel height width"] | None:
    """Return the images of all samples in one tensor, None if there is none."""
    if isinstance(images, Tensor):
        images = images.flatten(0, 1)
        return images if images.shape[0] else None
    return torch.cat(list(images)) if any(len(own) for own in images) else None


class Chosen(NamedTuple):
    """Some tokens of every sample, moved side by side; there is at least one place.

    Attributes:
        places: where they stand in the stream, `(batch, chosen)`.
        mask: True where a place is taken.
    """

    places: Int[Tensor, "batch chosen"]
    mask: Bool[Tensor, "batch chosen"]

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch token"], most: int | None = None) -> "Chosen":
        """Choose the tokens that `mask` marks, in their order; without `most` of them, the samples are counted."""
        counts = mask.sum(1, keepdim=True)
        length = max(int(counts.max()) if most is None else most, 1)
        index = torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices[:, :length]
        return cls(index, torch.arange(length, device=mask.device) < counts)

    def take(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch chosen dim"]:
        """Take these tokens from the stream."""
        return x.gather(1, self.places[..., None].expand(-1, -1, x.shape[2]))

    def put(
        self, x: Float[Tensor, "batch token dim"], new: Float[Tensor, "batch chosen dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Put new values in the places of these tokens of the stream."""
        kept = torch.where(self.mask[..., None], new.to(x.dtype), self.take(x))
        return x.scatter(1, self.places[..., None].expand(-1, -1, x.shape[2]), kept)
