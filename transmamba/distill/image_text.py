"""Bring the tokens of two vision-language models into correspondence: text by its order, patches by their grid."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transmamba._typing import check_sizes, typed
from transmamba.distill.align import Interpolation, resize_tokens
from transmamba.distill.aligned_text import AlignedText, align_text


@typed
def align_image_text(
    student: Float[Tensor, "batch token dim"],
    teacher: Float[Tensor, "batch token2 dim2"],
    student_mask: Bool[Tensor, "batch token"],
    teacher_mask: Bool[Tensor, "batch token2"],
    student_image: Bool[Tensor, "batch token"],
    teacher_image: Bool[Tensor, "batch token2"],
    *,
    student_grid: Sequence[int],
    teacher_grid: Sequence[int],
    interpolation: Interpolation = "bilinear",
) -> AlignedText:
    """Gather the same patches and the same text tokens of both sides: images in front, text behind them.

    Both sides may cut an image into different numbers of patches and pad differently. The student's patches are
    interpolated to the teacher's grid, image by image. Reads counts from the device.

    Logits need no patches: give `align_text` the masks of the answers.

    Args:
        student: features of image and text.
        teacher: features of the same samples.
        student_mask: True marks a real token.
        teacher_mask: the teacher's.
        student_image: the tokens that are patches, in raster order, image after image.
        teacher_image: the teacher's.
        student_grid: rows and columns of an image's patches.
        teacher_grid: the teacher's.
        interpolation: see `resize_tokens`.

    Raises:
        ValueError: a sample has different numbers of images or of text tokens on both sides, patches that do not fill
            whole grids, or a side of a grid is not a valid size.

    Example:
        >>> x, image = torch.randn(1, 6, 3), torch.tensor([[True] * 4 + [False] * 2])
        >>> real, half = torch.ones(1, 6, dtype=torch.bool), image[:, 3:]
        >>> grids = dict(student_grid=(2, 2), teacher_grid=(1, 1))
        >>> aligned = align_image_text(x, x[:, 3:], real, real[:, 3:], image, half, **grids)
        >>> aligned.student.shape, aligned.teacher.shape
        (torch.Size([1, 3, 3]), torch.Size([1, 3, 3]))
    """
    sides = ((student, student_mask, student_image, student_grid), (teacher, teacher_mask, teacher_image, teacher_grid))
    counts = [_images(name, *side[1:]) for name, side in zip(("student", "teacher"), sides, strict=True)]
    differ = (counts[0] != counts[1]).nonzero().flatten().tolist()
    if differ:
        raise ValueError(
            f"sample {differ[0]} has {int(counts[0][differ[0]])} images in the student, {int(counts[1][differ[0]])} in "
            "the teacher: give both the same samples"
        )
    patches = [side[0][side[1] & side[2]].unflatten(0, (-1, prod(side[3]))) for side in sides]
    patches[0] = resize_tokens(patches[0], tuple(student_grid), tuple(teacher_grid), interpolation)
    places = torch.arange(int(counts[0].max()) * prod(teacher_grid), device=student.device)
    seen = places < counts[0][:, None] * prod(teacher_grid)
    text = align_text(student, teacher, student_mask & ~student_image, teacher_mask & ~teacher_image)
    joined = [
        torch.cat([words.new_zeros(*seen.shape, words.shape[2]).masked_scatter(seen[..., None], own), words], 1)
        for own, words in zip(patches, text[:2], strict=True)
    ]
    return AlignedText(joined[0], joined[1], torch.cat([seen, text.mask], 1))


def _images(name: str, mask: Tensor, image: Tensor, grid: Sequence[int]) -> Tensor:
    """Count the images of each sample."""
    check_sizes(**{f"{name}_grid[{axis}]": side for axis, side in enumerate(grid)})
    tokens = (mask & image).sum(1)
    odd = (tokens % prod(grid)).nonzero().flatten().tolist()
    if odd:
        raise ValueError(
            f"sample {odd[0]} has {int(tokens[odd[0]])} image tokens in the {name}: expected a multiple of "
            f"{prod(grid)}, the patches of grid {tuple(grid)}; drop class tokens first"
        )
    return tokens // prod(grid)


@typed
def check_vocabularies(student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
    """Refuse to distil logits between vocabularies that differ: equal sizes may still mean other words.

    Args:
        student: number of each word, `tokenizer.get_vocab()`.
        teacher: the teacher's.

    Raises:
        ValueError: a word is missing on one side, or has another number.

    Example:
        >>> check_vocabularies({"a": 0, "b": 1}, {"b": 1, "a": 0})
    """
    differ = sorted(word for word in {*student, *teacher} if student.get(word) != teacher.get(word))
    if differ:
        word = differ[0]
        raise ValueError(
            f"{len(differ)} words differ, the first is {word!r}: number {student.get(word)} in the student, "
            f"{teacher.get(word)} in the teacher. logits need one vocabulary, use one tokenizer"
        )
