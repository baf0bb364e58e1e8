"""Both sides of a transfer at the same places, whatever the layouts."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import transmamba as tm
from transmamba import models
from transmamba.distill import (
    AdaptiveLayerDistill,
    BidirectionalDistill,
    DirectionBridge,
    LastFeatureDistill,
    LayerCalibrators,
    LayerwiseDistill,
    MultiDirectionalDistill,
    TokenRelationDistill,
    Tokens,
    align_layers,
    align_tokens,
    check_layouts,
    dry_run,
    natural_shares,
)

ROOT = Path(__file__).parents[2]
SIZE = {"img_size": 8, "patch_size": 2, "dim": 12, "num_classes": 5}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
STUDENTS = {
    "vision_mamba": lambda: models.VisionMamba(**SIZE, depth=2, orders=models.SNAKES),
    "vim": lambda: models.Vim(**SIZE, depth=2),
    "vim_both": lambda: models.Vim(**SIZE, depth=2, class_tokens="both"),
    "vit": lambda: models.ViT(**SIZE, depth=2, heads=3),
    "plain_mamba": lambda: models.PlainMamba(**SIZE, depth=2),
    "vmamba": lambda: models.vmamba_v2((8, 12), (1, 2), num_classes=5),
}


def teacher():
    torch.manual_seed(1)
    return models.ViT(**SIZE, depth=2, heads=3).eval()


def outputs(model, x):
    """Return the outputs of the mixers, less the bias of their projections, in natural order."""
    found = []

    def keep(mixer, _, out):
        projection = getattr(mixer, "out_proj", None) or mixer.proj
        found.append(out if projection.bias is None else out - projection.bias)

    blocks = [module for module in model.modules() if hasattr(module, "norm1")]
    mixers = [getattr(block, getattr(block, "mixer_name", "mixer")) for block in blocks]
    hooks = [mixer.register_forward_hook(keep) for mixer in mixers]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", STUDENTS)
def test_natural_shares_add_up_to_the_mixers_outputs(name):
    torch.manual_seed(0)
    model = STUDENTS[name]().eval()
    features = model.forward_features(X, directions=True)
    for i, (parts, whole) in enumerate(
        zip(zip(*natural_shares(features), strict=True), outputs(model, X), strict=True)
    ):
        patches = [p for p in range(whole.shape[1]) if p not in features.extra]
        expected = whole[:, patches]
        if name == "vit":  # its share has the bias in it
            expected = expected + model.blocks[i].attn.proj.bias
        torch.testing.assert_close(sum(parts), expected)


def test_tokens_keep_their_places():
    """A student that repeats the teacher's tokens around a class token in the middle has a loss of zero."""
    target = teacher().forward_features(X)
    patches = target.last[:, 1:]
    scan = torch.cat([patches[:, :8], torch.randn(2, 1, 12), patches[:, 8:]], 1)
    orders = tuple(tm.ops.scan_orders(("forward", "backward"), 17))
    features = models.Features(scan, (scan,), (4, 4), ((scan,), (scan.flip(1),)), orders, (8,))
    sides = DirectionBridge(features, target)(features, target)
    distill = MultiDirectionalDistill(order="raster")
    torch.testing.assert_close(distill(sides.student, sides.teacher), torch.tensor(0.0), atol=1e-5, rtol=0)
    wrong = BidirectionalDistill()([scan], [scan.flip(1)], target.last)
    assert wrong > 0.1  # equal shapes hide the misalignment, the layouts show it
    with pytest.raises(ValueError, match=r"class tokens stand at \(8,\), the teacher's at \(0,\)"):
        BidirectionalDistill()([scan], [scan.flip(1)], target.last, layouts=(features, target))
    losses = {
        AdaptiveLayerDistill(): ([scan], target.last),
        LastFeatureDistill(): (scan, target.last),
        LayerwiseDistill(): ([scan], [target.last]),
        TokenRelationDistill(): ([scan], target.last),
    }
    for loss, pair in losses.items():
        assert loss(*pair) > 0.01
        with pytest.raises(ValueError, match=r"class tokens stand at \(8,\), the teacher's at \(0,\)"):
            loss(*pair, layouts=(features, target))
        assert loss(*pair, layouts=(target, target)) == loss(*pair)
    with pytest.raises(ValueError, match="grid of"):
        check_layouts(Tokens(patches, (2, 8)), Tokens(patches, (4, 4)))
    BidirectionalDistill()([patches], [patches], patches, layouts=(Tokens(patches, (4, 4)),) * 2)


@pytest.mark.parametrize("name", STUDENTS)
def test_gradients_reach_student_and_calibrators(name):
    torch.manual_seed(0)
    student, tokens = STUDENTS[name](), torch.randn(2, 16, 20)
    features = student.forward_features(X, directions=True)
    target = Tokens(tokens, (4, 4))
    bridge = DirectionBridge(features, target, hidden_dim=5)
    sides = bridge(features, target)
    assert [share.shape for share in sides.student["0"]] == [tokens.shape] * len(features.layers)
    assert sides.teacher is tokens
    MultiDirectionalDistill(order="raster")(sides.student, sides.teacher).backward()
    assert student.patch_embed is not None and next(student.patch_embed.parameters()).grad.any()
    ends = [calibrator.maps[-1].weight for layers in bridge.calibrators for calibrator in layers.layers]
    assert all(weight.grad.any() for weight in ends)
    saved = DirectionBridge(features, target, hidden_dim=5)
    saved.load_state_dict(bridge.state_dict())


def test_errors():
    student, target = STUDENTS["vim"](), teacher().forward_features(X)
    features = student.forward_features(X, directions=True)
    with pytest.raises(ValueError, match=r"no directions: call forward_features\(x, directions=True\)"):
        DirectionBridge(student.forward_features(X), target)
    bridge = DirectionBridge(features, target)
    with pytest.raises(ValueError, match="the teacher has 17 tokens, its layout 0 extra ones"):
        bridge(features, Tokens(target.last, (4, 4)))
    with pytest.raises(ValueError, match="got 1 directions, the bridge was made for 2"):
        bridge(features._replace(directions=features.directions[:1]), target)
    pyramid = STUDENTS["vmamba"]().forward_features(X, directions=True)
    with pytest.raises(ValueError, match="layer_orders is empty"):
        natural_shares(pyramid._replace(layer_orders=()))


@pytest.mark.parametrize("student", ["Vim(**size, dim=48, depth=4)", "vmamba_v2((24, 48), (2, 3), num_classes=10)",
                                     "ViT(**size, dim=48, depth=4, heads=4)", None])  # fmt: skip
def test_the_lines_of_the_readme_serve_every_student(student):
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```python\n(>>> import torch, transmamba as tm.*?)```", text, re.DOTALL)
    lines = [line[4:] for line in block.splitlines() if line.startswith(">>> ")]
    if student is not None:
        assert f"tm.models.{student}" in text or student.startswith("ViT")
        lines = [f"student = tm.models.{student}" if line.startswith("student =") else line for line in lines]
    names = {}
    exec("\n".join(lines), names)
    model, features = names["student"], names["features"]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert len(names["report"].pads(model)) == len(features.layers)


def test_pads_of_a_pyramid_differ_by_stage():
    torch.manual_seed(0)
    big = models.ViT(img_size=8, patch_size=2, dim=24, depth=3, heads=3)
    student = models.vmamba_v2((8, 24), (1, 3), num_classes=5)
    report = tm.subclone(big, student, tm.transfer.magnitude_importance)
    pads = report.pads(student)
    assert [len(pad) for pad in pads[:1]] == [8] and pads[1:] == ["right"] * 3
    assert report.pads(student.state_dict()) == pads
    layers = LayerCalibrators([8, 24, 24, 24], 24, pad=pads)
    x = torch.randn(2, 5, 8)
    expected = torch.zeros(2, 5, 24)
    expected[..., list(pads[0])] = x
    torch.testing.assert_close(layers.layers[0](x), expected)
    with pytest.raises(ValueError, match="pad has 4 entries for 2 layers"):
        LayerCalibrators([8, 24], 24, pad=pads)
    with pytest.raises(ValueError, match="a shared calibrator has one pad"):
        LayerCalibrators([8, 8], 24, pad=[range(8), range(1, 9)], shared=True)


def test_the_default_layer_map_reaches_the_last_stage_of_a_pyramid():
    shallow = models.ViT(**SIZE, depth=2, heads=3)
    student = models.vmamba_v2((12, 12), (2, 3), num_classes=5)
    report = tm.subclone(shallow, student, tm.transfer.magnitude_importance)
    assert "stages.1.blocks.2.norm1.weight" in report.inherited
    early = tm.subclone(shallow, student, tm.transfer.magnitude_importance, layer_map="early", partial=True)
    assert "stages.1.blocks.2.norm1.weight" not in early.inherited
    for name in ("ssm.x_proj", "ssm.dt_proj", "ssm.A_log"):
        assert report.skipped[f"stages.0.blocks.0.mixer.{name}"].startswith("SSM parameter")


def test_a_grid_per_layer():
    layers, target = [torch.randn(2, 16, 3), torch.randn(2, 4, 5)], torch.randn(2, 17, 7)
    grids, options = [(4, 4), (2, 2)], {"teacher_prefix": 1, "teacher_grid": (4, 4)}
    aligned, kept = align_layers(layers, target, grids, **options)
    for layer, grid, got in zip(layers, grids, aligned, strict=True):
        torch.testing.assert_close(got, align_tokens(layer, target, student_grid=grid, **options)[0])
    assert torch.equal(kept, target[:, 1:])
    table = dry_run(layers, [target], align=partial(align_tokens, **options), student_grids=grids)
    assert table.fits and [row.tokens for row in table.rows] == [
        "16, teacher 17 -> 16", "4 -> 16, teacher 17 -> 16"]  # fmt: skip
    with pytest.raises(ValueError, match="student_grids has 1 entries"):
        dry_run(layers, [target], align=partial(align_tokens, **options), student_grids=grids[:1])
    with pytest.raises(ValueError, match="student_grids has 1 entries for 2 layers"):
        align_layers(layers, target, grids[:1])
    with pytest.raises(ValueError, match="one teacher for all: choose resize='student'"):
        align_layers(layers, target, grids, resize="teacher", **options)
    with pytest.raises(ValueError, match="student is empty"):
        align_layers([], target)
