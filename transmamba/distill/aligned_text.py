"""Bring the tokens of padded text into correspondence."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transmamba._typing import typed


class AlignedText(NamedTuple):
    """Features of the same real tokens, in the same places, and where they are."""

    student: Float[Tensor, "batch token dim"]
    teacher: Float[Tensor, "batch token dim2"]
    mask: Bool[Tensor, "batch token"]


@typed
def align_text(
    student: Float[Tensor, "batch token dim"],
    teacher: Float[Tensor, "batch token2 dim2"],
    student_mask: Bool[Tensor, "batch token"],
    teacher_mask: Bool[Tensor, "batch token2"],
) -> AlignedText:
    """Move the real tokens of both sides to the front: padding may differ in length and in side.

    Compares the two counts, hence waits for the device.

    Args:
        student: features of the padded text.
        teacher: features of the same text, padded otherwise.
        student_mask: True marks a real token.
        teacher_mask: the teacher's.

    Raises:
        ValueError: a sample has different numbers of real tokens, as after different tokenizers.

    Example:
        >>> x = torch.arange(3.0).view(1, 3, 1)
        >>> right = torch.tensor([[True, True, False]])
        >>> align_text(x, x, right, right.flip(1)).teacher.flatten()
        tensor([1., 2.])
    """
    counts, teacher_counts = student_mask.sum(1), teacher_mask.sum(1)
    differ = (counts != teacher_counts).nonzero().flatten().tolist()
    if differ:
        sample = differ[0]
        raise ValueError(
            f"sample {sample} has {int(counts[sample])} real tokens in the student, {int(teacher_counts[sample])} in "
            "the teacher: texts cut by different tokenizers have no common positions, distil pooled features instead"
        )
    length = int(counts.max()) if len(counts) else 0
    mask = torch.arange(length, device=counts.device) < counts[:, None]
    return AlignedText(_pack(student, student_mask, length), _pack(teacher, teacher_mask, length), mask)


def _pack(x: Tensor, mask: Tensor, length: int) -> Tensor:
    order = torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices[:, :length]
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
