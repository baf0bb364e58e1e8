import pytest
import torch

from transmamba.data import retrieval_scores


def ranks_by_sorting(similarity, own):
    """Return for each row the place of its best answer, others' captions of the same row left out."""
    ranks = []
    for row, right in zip(similarity.tolist(), own.tolist(), strict=True):
        best = max(value for value, mine in zip(row, right, strict=True) if mine)
        others = sorted((value for value, mine in zip(row, right, strict=True) if not mine), reverse=True)
        ranks.append(1 + sum(value >= best for value in others))
    return torch.tensor(ranks, dtype=torch.double)


def expected(similarity, own):
    ranks = ranks_by_sorting(similarity, own)
    recalls = [100 * (ranks <= k).double().mean().item() for k in (1, 5, 10)]
    return (*recalls, ranks.quantile(0.5).item(), ranks.mean().item())


@pytest.mark.parametrize("captions", [1, 3])
def test_scores_by_sorting(captions):
    text_video = torch.arange(29).repeat_interleave(captions)
    similarity = torch.randn(len(text_video), 29) + 1.5 * (text_video[:, None] == torch.arange(29))
    own = text_video[:, None] == torch.arange(29)
    scores = retrieval_scores(similarity, text_video)
    assert scores.text_to_video == pytest.approx(expected(similarity, own))
    assert scores.video_to_text == pytest.approx(expected(similarity.T, own.T))


def test_recall_is_the_hit_rate_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    similarity, right = torch.randn(31, 31), torch.eye(31, dtype=torch.bool)
    similarity[right] += 1.5
    scores = retrieval_scores(similarity)
    for matrix, ranking in ((similarity, scores.text_to_video), (similarity.T, scores.video_to_text)):
        for k, recall in zip((1, 5, 10), ranking[:3], strict=True):
            hits = [functional.retrieval_hit_rate(row, mine, top_k=k) for row, mine in zip(matrix, right, strict=True)]
            assert recall == pytest.approx(100 * torch.stack(hits).mean().item(), abs=1e-4)


def test_a_perfect_and_a_reversed_matrix():
    perfect = retrieval_scores(torch.eye(12))
    assert perfect.text_to_video == perfect.video_to_text == (100.0, 100.0, 100.0, 1.0, 1.0)
    worst = retrieval_scores(-torch.eye(12)).text_to_video
    assert worst == (0.0, 0.0, 0.0, 12.0, 12.0)


def test_ties_count_against_the_answer():
    assert retrieval_scores(torch.zeros(7, 7)).video_to_text == (0.0, 0.0, 100.0, 7.0, 7.0)


def test_scores_do_not_depend_on_the_order_of_texts_and_videos():
    text_video = torch.randint(7, (23,)).sort().values
    text_video[:7] = torch.arange(7)
    similarity = torch.randn(23, 7).round(decimals=1)  # with ties
    texts, videos = torch.randperm(23), torch.randperm(7)
    turned = retrieval_scores(similarity[texts][:, videos], videos.argsort()[text_video[texts]])
    assert turned == retrieval_scores(similarity, text_video)


def test_an_own_caption_does_not_stand_in_the_way():
    similarity = torch.tensor([[0.9, 0.0], [0.1, 0.2], [0.0, 0.5]])
    scores = retrieval_scores(similarity, torch.tensor([0, 0, 1]))
    assert scores.video_to_text.mean_rank == 1.0
    assert scores.text_to_video.mean_rank == pytest.approx(4 / 3)


def test_half_precision_is_ranked_too():
    similarity = torch.randn(5, 5).bfloat16()
    assert retrieval_scores(similarity) == retrieval_scores(similarity.float())


@pytest.mark.parametrize(
    ("similarity", "text_video", "message"),
    [
        (torch.zeros(3, 2), None, "3 texts and 2 videos: give text_video"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), "must name one of 2 videos for each of 3 texts"),
        (torch.zeros(2, 2), torch.tensor([0, -1]), "must name one of 2 videos"),
        (torch.zeros(0, 0), None, "must name one of 0 videos for each of 0 texts"),
        (torch.zeros(3, 3), torch.tensor([0, 0, 2]), "1 of 3 videos have no text, among them video 1"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), None, "text 1 and video 0 is not a number"),
    ],
)
def test_what_cannot_be_ranked_is_refused(similarity, text_video, message):
    with pytest.raises(ValueError, match=message):
        retrieval_scores(similarity, text_video)
