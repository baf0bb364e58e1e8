import math

import pytest
import torch
from torch.nn import functional as F

from transmamba.distill import MixingMatrixDistill, OFADistill, OfficialRepoLoss


def test_official_loss_follows_the_released_code():
    final, teacher = torch.randn(3, 7), torch.randn(3, 7)
    layers = [torch.randn(3, 7) for _ in range(12)]

    def ce(s, t):
        return -(torch.softmax(t / 2, 1) * torch.log(torch.softmax(s / 2, 1))).sum(1).mean()

    expected = 4.6 + 120 * ce(final, teacher) + sum((i + 1) * ce(layers[i], teacher) for i in range(11))
    torch.testing.assert_close(OfficialRepoLoss()(torch.tensor(4.6), final, layers, teacher), expected)


def test_official_loss_starts_near_978_at_width_192():
    pooled = torch.zeros(2, 192)
    value = OfficialRepoLoss()(torch.tensor(0.0), pooled, [pooled] * 12, pooled)
    torch.testing.assert_close(value.item(), (120 + 66) * math.log(192), atol=1e-2, rtol=0)


def test_ofa_at_gamma_one_is_two_cross_entropies():
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    target = torch.tensor([0, 3, 6, 2, 2])
    expected = F.cross_entropy(student, target) + F.cross_entropy(student, teacher.softmax(1))
    torch.testing.assert_close(OFADistill()(student, teacher, target), expected)


def test_ofa_follows_its_equation_at_any_gamma():
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    target = torch.tensor([0, 3, 6, 2, 2])
    p, log_q = (teacher / 2).softmax(1), (student / 2).log_softmax(1)
    total = 0
    for sample, true in enumerate(target.tolist()):
        weights = [(1 + p[sample, k]) ** 1.4 if k == true else p[sample, k] for k in range(7)]
        total -= sum(w * log_q[sample, k] for k, w in enumerate(weights))
    torch.testing.assert_close(OFADistill(1.4, temperature=2.0)(student, teacher, target), total / 5 * 4)


@pytest.mark.parametrize("relative", [False, True])
def test_mixing_matrices_are_compared_by_frobenius_norm(relative):
    student, teacher = ([torch.randn(2, 3, 5, 5, dtype=torch.float64) for _ in range(2)] for _ in range(2))
    norms = [
        (s[b, h] - t[b, h]).square().sum().sqrt() / (t[b, h].square().sum().sqrt() if relative else 1)
        for s, t in zip(student, teacher, strict=True)
        for b in range(2)
        for h in range(3)
    ]
    torch.testing.assert_close(MixingMatrixDistill(relative=relative)(student, teacher), sum(norms) / len(norms))


def test_equal_mixing_matrices_have_a_finite_gradient():
    matrices = torch.randn(1, 2, 5, 5)
    student = matrices.clone().requires_grad_()
    MixingMatrixDistill()([student], [matrices]).backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_gradients_by_finite_differences():
    student, teacher = (torch.randn(3, 5, dtype=torch.float64) for _ in range(2))
    target, task = torch.tensor([0, 4, 2]), torch.tensor(1.0, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: OFADistill(1.4)(x, teacher, target), student)
    assert torch.autograd.gradcheck(lambda x: OfficialRepoLoss()(task, x, [x, 2 * x], teacher), student)
    mixers = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: MixingMatrixDistill()([x], [torch.ones_like(x)]), mixers)


def test_no_gradient_reaches_the_teacher():
    student, teacher = (torch.randn(2, 3, 5, 5, requires_grad=True) for _ in range(2))
    (
        MixingMatrixDistill()([student], [teacher])
        + OFADistill()(student, teacher, torch.zeros(2, 3, 5, dtype=torch.int64))
        + OfficialRepoLoss()(torch.tensor(0.0), student[0, 0], [student[0, 0]], teacher[0, 0])
    ).backward()
    assert teacher.grad is None


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"temperature must be positive and finite, got nan"):
        OfficialRepoLoss(math.nan)
    with pytest.raises(ValueError, match=r"gamma must be finite and not negative, got -1.0"):
        OFADistill(-1.0)
    with pytest.raises(ValueError, match=r"temperature must be positive and finite, got 0.0"):
        OFADistill(temperature=0.0)


def test_bad_input_is_refused():
    x = torch.randn(2, 5)
    with pytest.raises(ValueError, match=r"final student layer 0 has 5 channels, teacher 7: calibrate first"):
        OfficialRepoLoss()(torch.tensor(0.0), x, [x], torch.randn(2, 7))
    with pytest.raises(ValueError, match=r"student is empty: expected at least one layer"):
        OfficialRepoLoss()(torch.tensor(0.0), x, [], x)
    with pytest.raises(ValueError, match=r"student has 5 classes, teacher 7"):
        OFADistill()(x, torch.randn(2, 7), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"2 student mixing matrices, 1 teacher ones: expected a pair each"):
        MixingMatrixDistill()([torch.randn(1, 2, 3, 3)] * 2, [torch.randn(1, 2, 3, 3)])
    with pytest.raises(ValueError, match=r"student layer 0 has 4 heads, teacher 2: average or repeat heads"):
        MixingMatrixDistill()([torch.randn(1, 4, 3, 3)], [torch.randn(1, 2, 3, 3)])


@pytest.mark.parametrize("module", [OFADistill(1.3), MixingMatrixDistill()])
def test_compiles_to_one_graph(module):
    student, teacher = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    if isinstance(module, OFADistill):
        arguments = (student, teacher, torch.zeros(2, 3, 5, dtype=torch.int64))
    else:
        arguments = ([student], [teacher])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), module(*arguments))
