import math

import pytest
import torch
from torch.nn import functional as F

from transmamba.distill import LastFeatureDistill, LayerwiseDistill, LogitsDistill


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(2, 5, 7, dtype=torch.float64), torch.randn(2, 5, 7, dtype=torch.float64)


def probabilities(logits, temperature):
    powers = (logits / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_follow_their_definitions(logits, temperature):
    q, p = (probabilities(side, temperature) for side in logits)
    m = 0.3 * p + 0.7 * q
    expected = {"forward": kl(p, q), "reverse": kl(q, p), "js": 0.3 * kl(p, m) + 0.7 * kl(q, m)}
    for divergence, value in expected.items():
        got = LogitsDistill(temperature, divergence, beta=0.3)(*logits)
        torch.testing.assert_close(got, value.mean() * temperature**2)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_logits_gradients_by_finite_differences(logits, divergence):
    student, teacher = (side[:, :2, :3] for side in logits)
    loss = LogitsDistill(2.0, divergence)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student.requires_grad_())


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_equal_logits_cost_nothing_and_a_shift_is_free(logits, divergence):
    student, teacher = logits
    loss = LogitsDistill(2.0, divergence)
    assert loss(teacher + 3, teacher).abs() < 1e-12
    torch.testing.assert_close(loss(student + 3, teacher - 5), loss(student, teacher))


def test_js_is_symmetric_at_one_half_and_bounded(logits):
    student, teacher = logits
    loss = LogitsDistill(divergence="js")
    torch.testing.assert_close(loss(student, teacher), loss(teacher, student))
    assert loss(torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]])) <= math.log(2) + 1e-6


def test_longer_sequences_do_not_weigh_more(logits):
    student, teacher = logits
    loss = LogitsDistill(2.0)
    torch.testing.assert_close(loss(student.repeat(1, 4, 1), teacher.repeat(1, 4, 1)), loss(student, teacher))


def test_gradient_keeps_its_size_as_temperature_grows():
    torch.manual_seed(0)
    teacher, student = torch.randn(3, 1000), torch.randn(3, 1000, requires_grad=True)
    norms = [torch.autograd.grad(LogitsDistill(t)(student, teacher), student)[0].norm() for t in (10.0, 100.0)]
    assert 0.8 < norms[0] / norms[1] < 1.25


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_padding_changes_no_logits_loss(logits, divergence):
    student, teacher = logits
    mask = (torch.arange(8) < 5).expand(2, 8)
    loss = LogitsDistill(2.0, divergence)
    padded = [F.pad(side, (0, 0, 0, 3), value=float(n)) for n, side in enumerate(logits)]
    torch.testing.assert_close(loss(*padded, mask), loss(student, teacher))


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_neither_loss_nor_gradient(logits, divergence, chunk):
    student, teacher = logits
    student.requires_grad_()
    mask = torch.arange(5).expand(2, 5) < torch.tensor([[3], [5]])
    whole, pieces = LogitsDistill(2.0, divergence), LogitsDistill(2.0, divergence, chunk=chunk)
    for given in ((student, teacher), (student, teacher, mask)):
        torch.testing.assert_close(pieces(*given), whole(*given))
        torch.testing.assert_close(
            *(torch.autograd.grad(loss(*given), student)[0] for loss in (pieces, whole)), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_chunks_have_second_derivatives(logits, divergence):
    student, teacher = logits
    student.requires_grad_()
    second = []
    for loss in (LogitsDistill(2.0, divergence), LogitsDistill(2.0, divergence, chunk=3)):
        (slope,) = torch.autograd.grad(loss(student, teacher), student, create_graph=True)
        second.append(torch.autograd.grad(slope.square().sum(), student)[0])
    torch.testing.assert_close(*second, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_chunks_of_any_precision_have_gradients_of_their_own(dtype):
    student, teacher = torch.randn(2, 7, 50).to(dtype)
    student.requires_grad_()
    slopes = [torch.autograd.grad(LogitsDistill(3.0, chunk=c)(student, teacher), student)[0] for c in (None, 2)]
    assert slopes[1].dtype == dtype
    torch.testing.assert_close(*slopes)


def test_chunks_keep_only_the_logits_for_the_backward():
    student, teacher = torch.randn(8, 1000, requires_grad=True), torch.randn(8, 1000)
    kept = {}
    for chunk in (None, 2):
        storages = {}

        def pack(x, storages=storages):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = LogitsDistill(2.0, chunk=chunk)(student, teacher)
        given = {side.untyped_storage().data_ptr() for side in (student, teacher)}
        kept[chunk] = sum(size for pointer, size in storages.items() if pointer not in given)
        assert loss.requires_grad
    assert kept[None] > 2 * 8 * 1000 * 4 - 1
    assert kept[2] < 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_half_logits_are_computed_in_single(logits, dtype, divergence):
    student, teacher = (side.to(dtype) for side in logits)
    loss = LogitsDistill(2.0, divergence)
    value = loss(student.requires_grad_(), teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))
    extreme = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16, requires_grad=True)
    loss(extreme, -extreme.detach()).backward()
    assert extreme.grad.isfinite().all()


def test_no_gradient_reaches_the_teacher(logits):
    student, teacher = (side.clone().requires_grad_() for side in logits)
    LogitsDistill()(student, teacher).backward()
    LastFeatureDistill()(student, teacher).backward()
    LastFeatureDistill("mse")(student, teacher).backward()
    LayerwiseDistill("mse")([student], [teacher]).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("temperature", [0.0, -2.0, math.nan, math.inf])
def test_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match=f"^temperature must be positive and finite, got {temperature}$"):
        LogitsDistill(temperature)


def test_bad_logits_options_are_refused():
    with pytest.raises(ValueError, match=r"unknown divergence 'l2': expected forward, reverse or js"):
        LogitsDistill(1.0, "l2")
    with pytest.raises(ValueError, match=r"beta must lie between 0 and 1, got 1.0"):
        LogitsDistill(beta=1.0)
    with pytest.raises(ValueError, match=r"chunk must be at least 1, got 0"):
        LogitsDistill(chunk=0)


def test_bad_logits_are_refused():
    with pytest.raises(
        ValueError, match=r"^student has 5 classes, teacher 7: distil between equal vocabularies, or cut both"
    ):
        LogitsDistill()(torch.randn(2, 5), torch.randn(2, 7))
    with pytest.raises(ValueError, match=r"student logits have shape \(2, 5\), teacher logits \(3, 5\)"):
        LogitsDistill()(torch.randn(2, 5), torch.randn(3, 5))
    with pytest.raises(TypeError, match=r"student logits have dtype torch.int64: expected a floating dtype"):
        LogitsDistill()(torch.ones(2, 5, dtype=torch.int64), torch.randn(2, 5))


def test_last_feature_follows_its_definition(logits):
    student, teacher = logits
    cosine = (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    torch.testing.assert_close(LastFeatureDistill()(student, teacher), cosine)
    torch.testing.assert_close(LastFeatureDistill("mse")(student, teacher), (student - teacher).square().mean())


@pytest.mark.parametrize("criterion", ["cosine", "mse"])
def test_layerwise_meets_the_layers_that_inheritance_spreads_evenly(logits, criterion):
    torch.manual_seed(1)
    student = [torch.randn_like(logits[0]) for _ in range(2)]
    teacher = [torch.randn_like(logits[0]) for _ in range(6)]
    one = LastFeatureDistill(criterion)
    expected = (one(student[0], teacher[0]) + one(student[1], teacher[5])) / 2
    for layers in ([0, -1], {0: 0, 1: 5}, "uniform"):
        torch.testing.assert_close(LayerwiseDistill(criterion, layers)(student, teacher), expected)
    torch.testing.assert_close(LayerwiseDistill(criterion)(student, teacher), expected)
    proportional = (one(student[0], teacher[2]) + one(student[1], teacher[5])) / 2
    torch.testing.assert_close(LayerwiseDistill(criterion, "proportional")(student, teacher), proportional)


@pytest.mark.parametrize("criterion", ["cosine", "mse"])
def test_padding_changes_no_feature_loss(logits, criterion):
    student, teacher = logits
    mask = (torch.arange(8) < 5).expand(2, 8)
    padded = [F.pad(side, (0, 0, 0, 3), value=float(n)) for n, side in enumerate(logits)]
    loss = LastFeatureDistill(criterion)
    torch.testing.assert_close(loss(*padded, mask), loss(student, teacher))


@pytest.mark.parametrize("loss", [LastFeatureDistill, LayerwiseDistill])
def test_unknown_criterion_is_refused(loss):
    with pytest.raises(ValueError, match=r"unknown criterion 'l1': expected cosine or mse"):
        loss("l1")


def test_unknown_teacher_layers_are_refused():
    with pytest.raises(ValueError, match=r"unknown teacher_layers 'first': expected one of last, early, uniform"):
        LayerwiseDistill(teacher_layers="first")


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"student layer 0 has 3 channels, teacher 7: calibrate first"):
        LastFeatureDistill()(torch.randn(2, 5, 3), torch.randn(2, 5, 7))
    with pytest.raises(ValueError, match=r"student layer 1 has 6 tokens, teacher 5: align them first"):
        LayerwiseDistill()([torch.randn(2, 5, 3), torch.randn(2, 6, 3)], [torch.randn(2, 5, 3)] * 2)
    with pytest.raises(ValueError, match=r"student is empty: expected at least one layer"):
        LayerwiseDistill()([], [torch.randn(2, 5, 3)])


@pytest.mark.parametrize("loss", [LogitsDistill(2.0), LogitsDistill(2.0, "js"), LastFeatureDistill()])
def test_compiles_to_one_graph(logits, loss):
    student, teacher = logits
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher), loss(student, teacher))
