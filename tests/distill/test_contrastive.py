import pytest
import torch

from transmamba.distill import ContrastiveLoss, LogitsDistill, SimilarityDistill, gather_batch


def test_one_text_per_video_is_the_loss_of_clip():
    similarity = torch.randn(5, 5)
    right = torch.arange(5)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(similarity, right) + cross_entropy(similarity.T, right)) / 2
    torch.testing.assert_close(ContrastiveLoss()(similarity), expected)


def test_value_with_several_captions_of_a_video():
    similarity, video = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 2])
    rows = -torch.log_softmax(similarity, 1)[torch.arange(5), video].mean()
    log_q = torch.log_softmax(similarity, 0)
    columns = -((log_q[0, 0] + log_q[1, 0]) / 2 + log_q[2, 1] + (log_q[3, 2] + log_q[4, 2]) / 2) / 3
    positive = video[:, None] == torch.arange(3)
    torch.testing.assert_close(ContrastiveLoss()(similarity, positive), (rows + columns) / 2)


def test_texts_and_videos_without_a_partner_are_negatives_only():
    similarity, positive = torch.randn(3, 2), torch.tensor([[True, False], [False, False], [False, False]])
    row = -torch.log_softmax(similarity[0], 0)[0]
    column = -torch.log_softmax(similarity[:, 0], 0)[0]
    torch.testing.assert_close(ContrastiveLoss()(similarity, positive), (row + column) / 2)
    assert ContrastiveLoss()(similarity, torch.zeros(3, 2, dtype=torch.bool)) == 0


def test_the_loss_does_not_depend_on_the_order_of_the_batch():
    similarity, positive = torch.randn(7, 5), torch.rand(7, 5) < 0.3
    texts, videos = torch.randperm(7), torch.randperm(5)
    loss = ContrastiveLoss()
    torch.testing.assert_close(
        loss(similarity[texts][:, videos], positive[texts][:, videos]), loss(similarity, positive)
    )


def test_gradients_of_the_contrastive_loss():
    positive = torch.tensor([[True, False, False], [True, False, False], [False, True, False], [False, False, False]])
    similarity = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: ContrastiveLoss()(s, positive), similarity)


def test_pairs_that_are_ruled_out_leave_the_loss_finite():
    similarity = torch.zeros(2, 2).masked_fill(~torch.eye(2, dtype=torch.bool), -torch.inf).requires_grad_()
    loss = ContrastiveLoss()(similarity)
    loss.backward()
    assert loss == 0 and similarity.grad.isfinite().all()


def test_half_precision_is_computed_in_single():
    similarity = torch.randn(5, 5).half()
    loss = ContrastiveLoss()(similarity)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ContrastiveLoss()(similarity.float()))


def test_unequal_numbers_need_to_be_told_what_belongs_together():
    with pytest.raises(ValueError, match="3 texts and 2 videos: say which belong together"):
        ContrastiveLoss()(torch.zeros(3, 2))


def test_without_a_group_the_batch_is_its_own():
    x = torch.randn(3, 2)
    assert gather_batch(x) is x


def test_similarities_are_matched_in_both_directions():
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    kl = LogitsDistill(2.0)
    expected = (kl(student, teacher) + kl(student.T, teacher.T)) / 2
    torch.testing.assert_close(SimilarityDistill(2.0)(student, teacher), expected)
    assert SimilarityDistill()(teacher + 1, teacher).abs() < 1e-6


def test_a_teacher_of_similarities_is_never_trained():
    student, teacher = torch.randn(3, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    SimilarityDistill()(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_similarities_of_other_samples_are_refused():
    with pytest.raises(ValueError, match=r"student compares \(3, 5\) texts and videos, teacher \(3, 2\)"):
        SimilarityDistill()(torch.zeros(3, 5), torch.zeros(3, 2))
