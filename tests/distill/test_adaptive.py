import math

import pytest
import torch
import torch._dynamo.testing
from torch.nn import functional as F

from transmamba.distill import AdaptiveLayerDistill

WEIGHTINGS = ("ratio", "neg_cos", "ratio_raw", "uniform", "linear")
SIMILARITIES = ("token", "flatten", "pooled")


@pytest.fixture
def features():
    torch.manual_seed(0)
    teacher = torch.randn(3, 5, 7, dtype=torch.float64)
    noise = (0.5, 1.0, 2.0, 4.0)
    return [teacher + scale * torch.randn_like(teacher) for scale in noise], teacher


def at_cosine(value: float, teacher: torch.Tensor) -> torch.Tensor:
    """Return features whose every token has exactly this cosine with the teacher."""
    unit = F.normalize(teacher, dim=-1)
    other = torch.randn_like(unit)
    other = F.normalize(other - (other * unit).sum(-1, keepdim=True) * unit, dim=-1)
    return value * unit + math.sqrt(1 - value * value) * other


def weights_at(cosines, **options):
    return AdaptiveLayerDistill(**options).weights(torch.tensor(cosines, dtype=torch.float64))


# value against the equations


def test_value_follows_the_equations(features):
    student, teacher = features
    cosines = [F.cosine_similarity(layer, teacher, dim=-1).mean() for layer in student]
    mean = sum(cosines) / 4
    powers = [math.exp(mean / (1.3 * max(c, 0.01))) for c in cosines]
    expected = sum(p / sum(powers) * (1 - c) for p, c in zip(powers, cosines, strict=True))
    torch.testing.assert_close(AdaptiveLayerDistill(tau=1.3)(student, teacher), expected)


def test_ratio_equals_the_printed_sum_with_tau_times_layers():
    cosines = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    printed = torch.softmax(cosines.sum() / (3 * 0.7 * cosines), 0)
    torch.testing.assert_close(weights_at([0.2, 0.5, 0.8], tau=0.7), printed)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("neg_cos", [math.exp(-0.2), math.exp(-0.5), math.exp(-0.8)]),
        ("uniform", [1.0, 1.0, 1.0]),
        ("linear", [1.0, 2.0, 3.0]),
    ],
)
@pytest.mark.parametrize(("scale", "total"), [("sum1", 1.0), ("mean_N", 3.0)])
def test_named_weightings(weighting, expected, scale, total):
    wanted = torch.tensor(expected, dtype=torch.float64)
    got = weights_at([0.2, 0.5, 0.8], weighting=weighting, scale=scale)
    torch.testing.assert_close(got, wanted / wanted.sum() * total)


def test_raw_ratio_is_the_transcription():
    wanted = torch.tensor([1.5 / 0.2, 3.0, 1.5 / 0.8], dtype=torch.float64)
    torch.testing.assert_close(weights_at([0.2, 0.5, 0.8], weighting="ratio_raw"), wanted)


def test_uniform_scaled_to_layers_is_equation_4(features):
    student, teacher = features
    plain = sum(1 - F.cosine_similarity(layer, teacher, dim=-1).mean() for layer in student)
    torch.testing.assert_close(AdaptiveLayerDistill(weighting="uniform", scale="mean_N")(student, teacher), plain)


def test_tensor_and_function_weights_are_used_as_they_come(features):
    student, teacher = features
    fixed = torch.tensor([0.0, 0.0, 5.0, 0.0])
    expected = 5 * (1 - F.cosine_similarity(student[2], teacher, dim=-1).mean())
    torch.testing.assert_close(AdaptiveLayerDistill(weighting=fixed)(student, teacher), expected)
    function = AdaptiveLayerDistill(weighting=lambda cosines: fixed.to(cosines))
    torch.testing.assert_close(function(student, teacher), expected)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_similarity_names_the_vectors_compared(features, similarity):
    student, teacher = features
    vectors = {
        "token": lambda x: x.flatten(0, 1),
        "flatten": lambda x: x.flatten(1),
        "pooled": lambda x: x.mean(1),
    }[similarity]
    expected = 1 - F.cosine_similarity(vectors(student[1]), vectors(teacher), dim=-1).mean()
    torch.testing.assert_close(AdaptiveLayerDistill(similarity=similarity)([student[1]], teacher), expected)


def test_sample_scope_weighs_each_sample_apart(features):
    student, teacher = features
    cosines = torch.stack([F.cosine_similarity(layer, teacher, dim=-1).mean(1) for layer in student])
    weights = torch.softmax(cosines.mean(0) / cosines.clamp(1e-2, 1), 0)
    loss, details = AdaptiveLayerDistill(weight_scope="sample")(student, teacher, return_details=True)
    torch.testing.assert_close(loss, (weights * (1 - cosines)).sum(0).mean())
    torch.testing.assert_close(details.weight, weights)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradients_by_finite_differences(features, weighting, similarity):
    student, teacher = features
    # with the gradient through the weights, the loss is the whole derivative
    loss = AdaptiveLayerDistill(weighting=weighting, similarity=similarity, detach_weights=False, tau=2.0)
    layers = [layer[:2, :3].clone().requires_grad_() for layer in student[:2]]
    assert torch.autograd.gradcheck(lambda *layers: loss(layers, teacher[:2, :3]), layers)


# invariants


@pytest.mark.parametrize("weighting", ["ratio", "neg_cos"])
def test_weight_falls_as_cosine_rises_and_sums_to_one(weighting):
    weights = weights_at([0.1, 0.3, 0.6, 0.9], weighting=weighting)
    assert (weights.diff() < 0).all()
    torch.testing.assert_close(weights.sum().item(), 1.0)


@pytest.mark.parametrize("weighting", ["ratio", "neg_cos", "uniform"])
def test_equal_cosines_weigh_the_same(weighting):
    weights = weights_at([0.4] * 5, weighting=weighting)
    torch.testing.assert_close(weights, torch.full_like(weights, 0.2))


def test_weights_tend_to_uniform_as_tau_grows():
    weights = weights_at([0.1, 0.5, 0.9], tau=1e6)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_loss_vanishes_when_all_are_aligned_and_only_then(features, weighting):
    student, teacher = features
    loss = AdaptiveLayerDistill(weighting=weighting)
    assert abs(loss([2 * teacher, 0.5 * teacher], teacher)) < 1e-12
    assert loss([2 * teacher, student[0]], teacher) > 1e-2


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_positive_rescaling_changes_nothing(features, similarity):
    student, teacher = features
    loss = AdaptiveLayerDistill(similarity=similarity)
    rescaled = [layer * (number + 1) for number, layer in enumerate(student)]
    torch.testing.assert_close(loss(rescaled, 7 * teacher), loss(student, teacher))


def test_layer_order_does_not_matter(features):
    student, teacher = features
    loss = AdaptiveLayerDistill()
    value, details = loss(student, teacher, return_details=True)
    turned, turned_details = loss(student[::-1], teacher, return_details=True)
    torch.testing.assert_close(value, turned)
    torch.testing.assert_close(details.weight, turned_details.weight.flip(0))


@pytest.mark.parametrize("weighting", ["ratio", "neg_cos", "ratio_raw", "uniform", "linear"])
def test_one_layer_gives_one_minus_cosine(features, weighting):
    student, teacher = features
    expected = 1 - F.cosine_similarity(student[2], teacher, dim=-1).mean()
    torch.testing.assert_close(AdaptiveLayerDistill(weighting=weighting)([student[2]], teacher), expected)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("weight_scope", ["batch", "sample"])
def test_padding_changes_nothing(features, similarity, weight_scope):
    student, teacher = features
    loss = AdaptiveLayerDistill(similarity=similarity, weight_scope=weight_scope)
    mask = (torch.arange(8) < 5).expand(3, 8)
    padded = [F.pad(layer, (0, 0, 0, 3), value=9.0) for layer in student]
    torch.testing.assert_close(loss(padded, F.pad(teacher, (0, 0, 0, 3), value=-4.0), mask), loss(student, teacher))


def test_sample_without_real_tokens_does_not_count(features):
    student, teacher = features
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    kept = [0, 2]
    loss = AdaptiveLayerDistill()
    torch.testing.assert_close(loss(student, teacher, mask), loss([layer[kept] for layer in student], teacher[kept]))


# teacher


def test_no_gradient_reaches_a_teacher_that_requires_grad(features):
    student, teacher = features
    student = [layer.requires_grad_() for layer in student]
    teacher.requires_grad_()
    AdaptiveLayerDistill(detach_weights=False)(student, teacher).backward()
    assert teacher.grad is None
    assert all(layer.grad.abs().sum() > 0 for layer in student)


def test_weights_carry_no_gradient_by_default():
    teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    student = [at_cosine(c, teacher).requires_grad_() for c in (0.1, 0.5, 0.9)]
    for detach, sign in ((True, 1), (False, -1)):
        grad = torch.autograd.grad(AdaptiveLayerDistill(detach_weights=detach)(student, teacher), student)
        # descent along -grad must not push a layer that is already good away from the teacher
        pull = -(grad[2] * F.normalize(teacher, dim=-1)).sum()
        assert pull.sign() == sign


def test_teacher_layers_meet_at_proportional_depth(features):
    student, teacher = features
    teachers = [torch.randn_like(teacher) for _ in range(8)]
    loss = AdaptiveLayerDistill(teacher_layers="proportional", weighting="uniform")
    one = AdaptiveLayerDistill()
    expected = sum(one([student[i]], teachers[2 * i + 1]) for i in range(4)) / 4
    torch.testing.assert_close(loss(student, teachers), expected)
    torch.testing.assert_close(
        AdaptiveLayerDistill(teacher_layers=[1, 3, 5, -1], weighting="uniform")(student, teachers), expected
    )
    torch.testing.assert_close(
        AdaptiveLayerDistill(teacher_layers={0: 1, 1: 3, 2: 5, 3: 7}, weighting="uniform")(student, teachers), expected
    )


def test_a_list_of_teachers_means_its_last(features):
    student, teacher = features
    loss = AdaptiveLayerDistill()
    torch.testing.assert_close(loss(student, [student[0], teacher]), loss(student, teacher))


# degenerate input


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_finite_at_zero_vectors_and_opposite_ones(dtype, weighting, similarity):
    teacher = torch.randn(2, 3, 5, dtype=dtype)
    teacher[0] = 0
    student = [torch.zeros(2, 3, 5, dtype=dtype), -teacher, 100 * torch.randn(2, 3, 5).to(dtype)]
    student = [layer.requires_grad_() for layer in student]
    loss = AdaptiveLayerDistill(weighting=weighting, similarity=similarity, detach_weights=False)
    value = loss(student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert all(layer.grad.isfinite().all() for layer in student)


def test_negative_cosine_weighs_most():
    weights = weights_at([-0.05, 0.02, 0.3, 0.5])
    assert weights.argmax() == 0


def test_half_features_are_computed_in_single(features):
    student, teacher = features
    half = [layer.bfloat16() for layer in student]
    value = AdaptiveLayerDistill()(half, teacher.bfloat16())
    expected = AdaptiveLayerDistill()([layer.float() for layer in half], teacher.bfloat16().float())
    assert torch.equal(value, expected)


def test_autocast_changes_nothing(features):
    student, teacher = ([layer.float() for layer in features[0]], features[1].float())
    loss = AdaptiveLayerDistill()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher)
    assert torch.equal(value, loss(student, teacher))


def test_details_are_detached_and_complete(features):
    student, teacher = features
    loss, details = AdaptiveLayerDistill()([layer.requires_grad_() for layer in student], teacher, return_details=True)
    assert loss.requires_grad
    assert not any(part.requires_grad for part in details)
    torch.testing.assert_close((details.weight * (1 - details.cosine)).sum(), details.loss)


def test_nothing_waits_for_the_device():
    # a meta tensor has no value to read back to the host: whatever waited for one would fail here
    student = [torch.randn(2, 3, 5, device="meta", requires_grad=True) for _ in range(2)]
    teacher, mask = torch.randn(2, 3, 5, device="meta"), torch.ones(2, 3, dtype=torch.bool, device="meta")
    for weighting in WEIGHTINGS:
        value, details = AdaptiveLayerDistill(weighting=weighting)(student, teacher, mask, return_details=True)
        value.backward()
        assert details.weight.is_meta


# errors


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_bad_tau_is_refused(tau):
    with pytest.raises(ValueError, match=f"tau must be positive and finite, got {tau}"):
        AdaptiveLayerDistill(tau=tau)


@pytest.mark.parametrize("eps", [0.0, 1.0, math.nan])
def test_bad_eps_is_refused(eps):
    with pytest.raises(ValueError, match=f"eps must lie between 0 and 1, got {eps}"):
        AdaptiveLayerDistill(eps=eps)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("similarity", "token, flatten or pooled"),
        ("weighting", "one of ratio, neg_cos, ratio_raw, uniform, linear"),
        ("weight_scope", "batch or sample"),
        ("scale", "sum1 or mean_N"),
        ("teacher_layers", "one of last, early, uniform"),
    ],
)
def test_unknown_choices_are_refused(name, choices):
    with pytest.raises(ValueError, match=f"unknown {name} 'other': expected {choices}"):
        AdaptiveLayerDistill(**{name: "other"})


def wrong(layers=8, **changes):
    """Return eight good layers of shape (2, 5, 11), the seventh replaced."""
    good = [torch.randn(2, 5, 11) for _ in range(layers)]
    return [*good[:6], changes["layer"], *good[7:]]


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (
            torch.randn(2, 5, 7),
            ValueError,
            r"^student layer 6 has 7 channels, teacher 11: calibrate first, FeatureCalibrator\(7, 11\)$",
        ),
        (
            torch.randn(2, 6, 11),
            ValueError,
            r"^student layer 6 has 6 tokens, teacher 5: align them first, align_tokens\(student, teacher, ...\)$",
        ),
        (torch.randn(3, 5, 11), ValueError, r"^student layer 6 has 3 batch, teacher 2: give both the same samples$"),
        (torch.randn(5, 11), ValueError, r"^student layer 6 has shape \(5, 11\): expected \[batch tokens channels\]$"),
        (
            torch.ones(2, 5, 11, dtype=torch.int64),
            TypeError,
            r"^student layer 6 has dtype torch.int64: expected a floating dtype$",
        ),
    ],
)
def test_wrong_layer_is_named_on_every_call(layer, error, message):
    for _ in range(20):
        with pytest.raises(error, match=message):
            AdaptiveLayerDistill()(wrong(layer=layer), torch.randn(2, 5, 11))


def test_item_that_is_no_tensor_is_refused():
    from transmamba.distill.checks import check_layers

    with pytest.raises(TypeError, match=r"student layer 1 is a NoneType: expected a tensor \[batch tokens channels\]"):
        check_layers([torch.randn(2, 3, 5), None], [torch.randn(2, 3, 5)])


def test_integer_teacher_is_refused():
    with pytest.raises(TypeError, match=r"^teacher has dtype torch.int64: expected a floating dtype$"):
        AdaptiveLayerDistill()([torch.randn(2, 5, 3)], torch.ones(2, 5, 3, dtype=torch.int64))


def test_empty_lists_are_refused():
    x = torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match=r"^student is empty: expected at least one layer$"):
        AdaptiveLayerDistill()([], x)
    with pytest.raises(ValueError, match=r"^teacher is empty: expected at least one layer$"):
        AdaptiveLayerDistill()([x], [])


def test_wrong_numbers_of_layers_are_refused():
    x = torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match=r"^3 teacher indices for 2 student layers: give one for each$"):
        AdaptiveLayerDistill(teacher_layers=[0, 1, 2])([x, x], [x, x, x])
    with pytest.raises(ValueError, match=r"teacher_layers='proportional' needs a sequence of teacher layers, got one"):
        AdaptiveLayerDistill(teacher_layers="proportional")([x], x)
    with pytest.raises(ValueError, match=r"weighting has shape \(3,\): expected one weight per student layer, 2"):
        AdaptiveLayerDistill(weighting=torch.ones(3))([x, x], x)
    with pytest.raises(ValueError, match=r"weighting returned shape \(1,\): expected \(2,\)"):
        AdaptiveLayerDistill(weighting=lambda cosines: cosines[:1])([x, x], x)


def test_mask_of_another_shape_is_refused():
    x = torch.randn(2, 5, 3)
    with pytest.raises(TypeError, match="mask"):
        AdaptiveLayerDistill()([x], x, torch.ones(2, 4, dtype=torch.bool))


# compile


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_compiles_to_one_graph_and_never_again(weighting):
    loss = AdaptiveLayerDistill(weighting=weighting)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for seed in range(4):
        torch.manual_seed(seed)
        teacher = torch.randn(2, 3, 5)
        student = [torch.randn(2, 3, 5, requires_grad=True) for _ in range(3)]
        got = compiled(student, teacher)
        torch.testing.assert_close(got, loss(student, teacher))
        got.backward()
    assert counter.frame_count == 1
