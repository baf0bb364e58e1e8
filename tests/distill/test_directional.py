import math

import pytest
import torch
import torch._dynamo.testing

from transmamba.distill import AdaptiveLayerDistill, BidirectionalDistill, MultiDirectionalDistill
from transmamba.ops.orders import ScanOrder, permute_tokens, scan_order

GRID = (2, 3)
NAMES = ("forward", "backward", "column", "column_reverse", "snake", "snake_column_reverse")


@pytest.fixture
def features():
    torch.manual_seed(0)
    teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    raster = {name: [teacher + torch.randn_like(teacher) for _ in range(3)] for name in NAMES}
    scan = {name: [permute_tokens(x, scan_order(name, GRID)) for x in layers] for name, layers in raster.items()}
    return scan, raster, teacher


def test_two_directions_are_the_equations(features):
    scan, _, teacher = features
    inner = AdaptiveLayerDistill()
    expected = inner(scan["forward"], teacher) + inner(scan["backward"], teacher.flip(1))
    torch.testing.assert_close(BidirectionalDistill()(scan["forward"], scan["backward"], teacher), expected)


def test_each_direction_meets_the_teacher_in_its_order(features):
    scan, _, teacher = features
    inner = AdaptiveLayerDistill()
    expected = sum(inner(layers, permute_tokens(teacher, scan_order(name, GRID))) for name, layers in scan.items())
    torch.testing.assert_close(MultiDirectionalDistill()(scan, teacher, grid=GRID), expected)


@pytest.mark.parametrize("similarity", ["token", "flatten"])
def test_scan_and_raster_order_agree(features, similarity):
    scan, raster, teacher = features
    inner = AdaptiveLayerDistill(similarity=similarity)
    torch.testing.assert_close(
        MultiDirectionalDistill(inner)(scan, teacher, grid=GRID),
        MultiDirectionalDistill(inner, order="raster")(raster, teacher),
    )
    torch.testing.assert_close(
        BidirectionalDistill(inner)(scan["forward"], scan["backward"], teacher),
        BidirectionalDistill(inner, order="raster")(raster["forward"], raster["backward"], teacher),
    )


def test_order_can_be_said_with_the_features(features):
    scan, raster, teacher = features
    expected = BidirectionalDistill()(scan["forward"], scan["backward"], teacher)
    got = BidirectionalDistill()(raster["forward"], raster["backward"], teacher, order="raster")
    torch.testing.assert_close(got, expected)
    back = BidirectionalDistill(order="raster")(scan["forward"], scan["backward"], teacher, order="scan")
    torch.testing.assert_close(back, expected)


def test_forgetting_the_order_changes_the_value(features):
    scan, _, teacher = features
    right = BidirectionalDistill()(scan["forward"], scan["backward"], teacher)
    wrong = BidirectionalDistill(order="raster")(scan["forward"], scan["backward"], teacher)
    assert (right - wrong).abs() > 1e-2


def test_bidirectional_is_the_case_of_two(features):
    scan, _, teacher = features
    pair = {name: scan[name] for name in ("forward", "backward")}
    torch.testing.assert_close(
        BidirectionalDistill(reduction="mean")(*pair.values(), teacher),
        MultiDirectionalDistill(reduction="mean")(pair, teacher),
    )


def test_own_permutation(features):
    _, raster, teacher = features
    index = torch.tensor([3, 0, 5, 1, 4, 2])
    order = ScanOrder(index, index.argsort())
    mine = {"mine": [permute_tokens(x, order) for x in raster["forward"]]}
    torch.testing.assert_close(
        MultiDirectionalDistill()(mine, teacher, orders={"mine": order}),
        AdaptiveLayerDistill()(raster["forward"], teacher),
    )


def test_a_direction_weight_may_be_any_finite_number(features):
    scan, _, teacher = features
    forward = {"forward": scan["forward"]}
    loss = MultiDirectionalDistill(direction_weights={"forward": 2**70})(forward, teacher)
    torch.testing.assert_close(loss, MultiDirectionalDistill()(forward, teacher) * 2.0**70)


def test_direction_weights_and_mean(features):
    scan, _, teacher = features
    pair = {name: scan[name] for name in ("forward", "backward")}
    loss = MultiDirectionalDistill(reduction="mean", direction_weights={"forward": 3.0, "backward": 0.5})
    value, details = loss(pair, teacher, return_details=True)
    torch.testing.assert_close(value, (3 * details.loss[0] + 0.5 * details.loss[1]) / 2)
    assert details.directions == ("forward", "backward")


def test_mask_is_in_natural_order(features):
    _, raster, teacher = features
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    backward = [layer.masked_fill(~mask[..., None], 9.0).flip(1) for layer in raster["backward"]]
    got = BidirectionalDistill()(raster["forward"], backward, teacher, mask)
    inner = AdaptiveLayerDistill()
    expected = inner(raster["forward"], teacher, mask) + inner(raster["backward"], teacher, mask)
    torch.testing.assert_close(got, expected)


def test_teacher_list_serves_every_direction(features):
    scan, _, teacher = features
    teachers = [torch.randn_like(teacher) for _ in range(2)] + [teacher]
    inner = AdaptiveLayerDistill(teacher_layers="proportional")
    expected = inner(scan["forward"], teachers) + inner(scan["backward"], [x.flip(1) for x in teachers])
    torch.testing.assert_close(BidirectionalDistill(inner)(scan["forward"], scan["backward"], teachers), expected)


def test_directions_may_differ_in_depth(features):
    scan, _, teacher = features
    inner = AdaptiveLayerDistill()
    expected = inner(scan["forward"], teacher) + inner(scan["backward"][:1], teacher.flip(1))
    pair = {"forward": scan["forward"], "backward": scan["backward"][:1]}
    torch.testing.assert_close(MultiDirectionalDistill()(pair, teacher), expected)


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    layers = [torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    loss = BidirectionalDistill(AdaptiveLayerDistill(detach_weights=False, weighting="neg_cos"))
    assert torch.autograd.gradcheck(lambda *layers: loss(layers[:2], layers[2:], teacher), layers)


def test_no_gradient_reaches_the_teacher(features):
    scan, _, teacher = features
    forward = [layer.requires_grad_() for layer in scan["forward"]]
    BidirectionalDistill()(forward, scan["backward"], teacher.requires_grad_()).backward()
    assert teacher.grad is None


def test_teacher_is_normalised_once_whatever_the_directions(features, monkeypatch):
    from transmamba.distill import adaptive

    scan, _, teacher = features
    calls = []
    original = adaptive.unit_target
    monkeypatch.setattr(adaptive, "unit_target", lambda *args: calls.append(1) or original(*args))
    MultiDirectionalDistill()(scan, teacher, grid=GRID)
    assert len(calls) == 1


def test_compiles_to_one_graph_and_never_again(features):
    scan, _, teacher = features
    loss = MultiDirectionalDistill()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for scale in (1.0, 2.0, 3.0):
        shifted = {name: [layer + scale for layer in layers] for name, layers in scan.items()}
        torch.testing.assert_close(compiled(shifted, teacher, grid=GRID), loss(shifted, teacher, grid=GRID))
    assert counter.frame_count == 1


def test_pooled_similarity_is_refused():
    message = r"similarity='pooled' cannot tell directions apart: use 'token' or 'flatten'"
    for loss in (MultiDirectionalDistill, BidirectionalDistill):
        with pytest.raises(ValueError, match=message):
            loss(AdaptiveLayerDistill(similarity="pooled"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "column"}, r"unknown order 'column': expected scan or raster"),
        ({"reduction": "max"}, r"unknown reduction 'max': expected sum or mean"),
        ({"direction_weights": {"forward": math.nan}}, r"weight of direction 'forward' must be finite, got nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiDirectionalDistill(**options)


def test_bad_input_is_refused(features):
    scan, _, teacher = features
    forward = scan["forward"]
    loss = MultiDirectionalDistill()
    with pytest.raises(ValueError, match=r"student is empty: expected at least one direction"):
        loss({}, teacher)
    with pytest.raises(ValueError, match=r"unknown scan order 'sideways'"):
        loss({"sideways": forward}, teacher)
    with pytest.raises(ValueError, match=r"needs a grid of at least 2 axes, got \(6,\)"):
        loss({"column": forward}, teacher)
    with pytest.raises(ValueError, match=r"direction 'column' orders 20 tokens, the teacher has 6"):
        loss({"column": forward}, teacher, grid=(4, 5))
    with pytest.raises(ValueError, match=r"backward student layer 1 has 4 channels, teacher 5: calibrate first"):
        loss({"forward": forward, "backward": [forward[0], forward[1][..., :4], forward[2]]}, teacher)
    with pytest.raises(ValueError, match=r"direction 'forward' has no weight: direction_weights names column"):
        MultiDirectionalDistill(direction_weights={"column": 1.0})({"forward": forward}, teacher)
    with pytest.raises(ValueError, match=r"3 forward layers, 2 backward layers: expected equally many"):
        BidirectionalDistill()(forward, forward[:2], teacher)
