"""Text against video: negatives from all processes, the contrastive loss, and a teacher's similarities as labels."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from transmamba._typing import typed
from transmamba.distill.baselines import LogitsDistill
from transmamba.distill.checks import widen


@typed
def gather_batch(
    x: Shaped[Tensor, "batch ..."], process_group: dist.ProcessGroup | None = None
) -> Shaped[Tensor, "joined ..."]:
    """Gather the samples of all processes in the order of their ranks; without a group, return `x` itself.

    Processes may have unequal numbers of samples, also none. The gradient is the sum of those that all processes send
    back. When each of them computes the loss of the whole joined batch, that is the world size times the true gradient,
    which averaging over processes (DDP, FSDP) turns into the true one; so every process has to run its backward. The
    same holds when each computes some rows of a similarity matrix and gathers these.

    Args:
        x: features, masks or numbers of samples; all axes but the first equal on all processes.
        process_group: the processes.

    Raises:
        ValueError: the processes differ in the other axes; all of them raise.

    Example:
        >>> gather_batch(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if process_group is None:
        return x
    shape = torch.tensor(x.shape, device=x.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(shapes, shape, group=process_group)
    everyone = [tuple(other.tolist()) for other in shapes]
    for rank, other in enumerate(everyone):
        if other[1:] != everyone[0][1:]:
            raise ValueError(
                f"process {rank} has samples of shape {other[1:]}, process 0 {everyone[0][1:]}: pad to one length"
            )
    counts = [other[0] for other in everyone]
    return _Gather.apply(x, counts, process_group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.counts, ctx.group = counts, group
        # backends gather equal sizes only, and not all of them gather booleans
        padded = x.new_zeros(max(counts), *x.shape[1:], dtype=torch.uint8 if x.dtype == torch.bool else x.dtype)
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient.split(ctx.counts)[dist.get_rank(ctx.group)], None, None


class ContrastiveLoss(nn.Module):
    """Each text should prefer its videos over all others, and each video its texts.

    With s the similarities (scaled by their temperature) and P(t) the videos of text t,

        loss = (rows + columns) / 2,    rows = mean_t mean_{v in P(t)} -log softmax_v(s_tv),

    and the columns likewise over the texts of each video. One text per video gives CLIP's loss. A text without a video
    in the batch, or a video without a text, is a negative only.

    Reference:
        CLIP, arXiv 2103.00020, and CLIP4Clip, 2104.08860; the mean over several positives is that of 2004.11362.

    Example:
        >>> ContrastiveLoss()(torch.zeros(3, 3))
        tensor(1.0986)
    """

    @typed
    def forward(
        self, similarity: Float[Tensor, "text video"], positive: Bool[Tensor, "text video"] | None = None
    ) -> Float[Tensor, ""]:
        """Compute the loss of the whole matrix, in single precision at least.

        Args:
            similarity: every text with every video of the (joined) batch.
            positive: which belong together; by default text i and video i. With the numbers of the videos,
                `text_video[:, None] == video[None]` keeps a video's other captions from counting as negatives.

        Raises:
            ValueError: the matrix is not square and `positive` is missing.
        """
        texts, videos = similarity.shape
        if positive is None:
            if texts != videos:
                raise ValueError(
                    f"{texts} texts and {videos} videos: say which belong together, positive=text_video[:, None] =="
                    " video[None]"
                )
            positive = torch.eye(texts, dtype=torch.bool, device=similarity.device)
        similarity = widen(similarity)
        return (_prefer(similarity, positive) + _prefer(similarity.T, positive.T)) / 2


def _prefer(similarity: Tensor, positive: Tensor) -> Tensor:
    """Average, over the rows that have a positive, the cross-entropy with all their positives alike."""
    count = positive.sum(1)
    likelihood = F.log_softmax(similarity, 1).masked_fill(~positive, 0).sum(1) / count.clamp_min(1)
    return -likelihood.sum() / (count > 0).sum().clamp_min(1)


class SimilarityDistill(nn.Module):
    """Match the teacher's choice among all videos for each text, and among all texts for each video.

    The mean of `LogitsDistill` over rows and over columns: the teacher's similarities are soft labels, which also show
    how close the wrong pairs are. Both matrices carry their own scale.

    Args:
        temperature: softens both sides further.

    Raises:
        ValueError: the temperature is not positive and finite; on the call, if the matrices differ in shape.

    Example:
        >>> SimilarityDistill()(torch.zeros(3, 5), torch.zeros(3, 5))
        tensor(0.)
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.distill = LogitsDistill(temperature)

    @typed
    def forward(
        self, student: Shaped[Tensor, "text video"], teacher: Shaped[Tensor, "text2 video2"]
    ) -> Float[Tensor, ""]:
        """Compute the divergence; the teacher is detached.

        Raises:
            ValueError: the sides compare other numbers of texts or videos.
        """
        if student.shape != teacher.shape:
            raise ValueError(
                f"student compares {tuple(student.shape)} texts and videos, teacher {tuple(teacher.shape)}: give both "
                "the same samples"
            )
        return (self.distill(student, teacher) + self.distill(student.T, teacher.T)) / 2
