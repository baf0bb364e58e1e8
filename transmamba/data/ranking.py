"""Scores of text-video retrieval: recall, median and mean rank, in both directions."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transmamba._typing import typed


class Ranking(NamedTuple):
    """Scores of one direction.

    Attributes:
        recall_at_1: per cent of the queries whose answer comes first.
        recall_at_5: whose answer is among the first five.
        recall_at_10: whose answer is among the first ten.
        median_rank: of the answers; 1 is best. Between two middle ranks, their mean.
        mean_rank: of the answers.
    """

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float


class RetrievalScores(NamedTuple):
    """Videos found by texts, and texts found by videos."""

    text_to_video: Ranking
    video_to_text: Ranking


@typed
def retrieval_scores(
    similarity: Float[Tensor, "text video"], text_video: Int[Tensor, " text"] | None = None
) -> RetrievalScores:
    """Rank the videos for each text, and the texts for each video.

    A video with several captions is found by each of them, and finds the best placed of them; its other captions are
    left out of that rank. Ties count against the answer, so that a model with equal scores for all gets the last rank,
    and the scores do not depend on any order.

    Args:
        similarity: every text with every video; a cosine or any other score, higher is more alike.
        text_video: the video of each text; by default text i belongs to video i.

    Raises:
        ValueError: a text has no video in the matrix, a video no text, or a similarity is not a number.

    Example:
        >>> retrieval_scores(torch.eye(3)).text_to_video
        Ranking(recall_at_1=100.0, recall_at_5=100.0, recall_at_10=100.0, median_rank=1.0, mean_rank=1.0)
    """
    texts, videos = similarity.shape
    if text_video is None:
        if texts != videos:
            raise ValueError(f"{texts} texts and {videos} videos: give text_video, the video of each text")
        text_video = torch.arange(texts, device=similarity.device)
    answer = text_video.to(similarity.device)
    _check(similarity, answer)
    own = answer[:, None] == torch.arange(videos, device=similarity.device)
    best_text = similarity.masked_fill(~own, -torch.inf).amax(0)
    found_by_text = similarity.gather(1, answer[:, None])
    return RetrievalScores(
        _ranking(1 + ((similarity >= found_by_text) & ~own).sum(1)),
        _ranking(1 + ((similarity >= best_text) & ~own).sum(0)),
    )


def _check(similarity: Tensor, answer: Tensor) -> None:
    texts, videos = similarity.shape
    if answer.shape != (texts,) or not texts or answer.min() < 0 or answer.max() >= videos:
        raise ValueError(f"text_video must name one of {videos} videos for each of {texts} texts")
    lonely = sorted(set(range(videos)) - set(answer.tolist()))
    if lonely:
        raise ValueError(f"{len(lonely)} of {videos} videos have no text, among them video {lonely[0]}: leave them out")
    if similarity.isnan().any():
        text, video = similarity.isnan().nonzero()[0].tolist()
        raise ValueError(f"the similarity of text {text} and video {video} is not a number")


def _ranking(ranks: Tensor) -> Ranking:
    ordered = ranks.double().sort().values
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    first, five, ten = (100 * (ordered <= k).double().mean().item() for k in (1, 5, 10))
    return Ranking(first, five, ten, middle.item(), ordered.mean().item())
