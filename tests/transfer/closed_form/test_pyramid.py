"""Stages of other grids and widths are solved against the teacher's stream, resampled and projected."""

import pytest
import torch

from tests.transfer.closed_form.images import small_images, small_vit
from transmamba.models import ViT, vmamba_v0, vmamba_v2
from transmamba.transfer import fit_layers, fit_stages, magnitude_importance, principal_axes, subclone
from transmamba.transfer.closed_form.pyramid import _resampled

DIMS, DEPTHS = (6, 12), (1, 3)


@pytest.fixture
def teacher():
    return small_vit(depth=6)


@pytest.fixture
def images():
    return small_images(5)


@pytest.fixture
def student():
    torch.manual_seed(2)
    return vmamba_v2(DIMS, DEPTHS, num_classes=3).eval()


def stream_errors(student, teacher, images, axes, layers):
    """Compute the squared error of each stage's last stream, relative to the variance of its target."""
    found = []
    for ours, theirs, dim in zip([0, 3], layers, DIMS, strict=True):
        pairs = []
        for x in images:
            with torch.no_grad():
                mine, other = student.forward_features(x), teacher.forward_features(x)
            view = _resampled(other.extra, other.grid, mine.grids[ours])
            pairs.append((mine.layers[ours], view(other.layers[theirs]) @ axes[:dim].T))
        mine, target = (torch.cat(side).flatten(0, 1) for side in zip(*pairs, strict=True))
        found.append(float((mine - target).square().sum() / (target - target.mean(0)).square().sum()))
    return found


def test_patches_are_interpolated_and_class_tokens_left_out():
    # class token 9, patches 0 4 / 8 12: rows differ by 8, columns by 4
    tokens = torch.tensor([9.0, 0.0, 4.0, 8.0, 12.0])[None, :, None]
    assert _resampled((0,), (2, 2), (1, 1))(tokens).flatten().tolist() == [6.0]  # the mean, by symmetry
    assert _resampled((0,), (2, 2), (2, 2))(tokens).flatten().tolist() == [0.0, 4.0, 8.0, 12.0]
    # centres of the finer patches lie a quarter and three quarters between those of the coarser, the first outside
    steps = torch.tensor([0.0, 0.25, 0.75, 1.0])
    expected = 8 * steps[:, None] + 4 * steps
    torch.testing.assert_close(_resampled((0,), (2, 2), (4, 4))(tokens)[0, :, 0], expected.flatten())
    # the class token elsewhere
    assert _resampled((2,), (1, 2), (1, 2))(torch.tensor([1.0, 2.0, 9.0])[None, :, None]).flatten().tolist() == [1, 2]


@torch.no_grad()
def test_the_first_readout_of_a_stage_is_the_ridge_solution(teacher, student, images):
    """Recompute the first layer of the second stage from its definition, in float64."""
    stage, ridge = student.stages[1], 1e-3
    axes = principal_axes(teacher, images, 12)
    fit_stages(teacher, student, images, ridge=ridge, inputs=False, progress=False)
    features, targets = [], []
    for x in images:
        inputs = []
        readout, block = stage.blocks[0].mixer.out_proj, stage.blocks[0]
        hooks = [readout.register_forward_pre_hook(lambda _, given, kept=inputs: kept.append(given[0])),
                 block.register_forward_pre_hook(lambda _, given, kept=inputs: kept.append(given[0]))]  # fmt: skip
        student(x)
        for hook in hooks:
            hook.remove()
        stream, z = inputs  # the block begins before its readout
        # student layer 1 of 4 follows teacher layer 2 of 6 ("uniform"), up to the middle of that block
        block, before = teacher.blocks[2], teacher.forward_features(x).layers[1]
        middle = before + block.attn(block.norm1(before))
        target = _resampled((0,), (4, 4), (4, 4))(middle) @ axes.T - stream
        features.append(z.flatten(0, 1).double())
        targets.append(target.flatten(0, 1).double())
    z, t = torch.cat(features), torch.cat(targets)
    gram = z.T @ z
    expected = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)), z.T @ t).T
    torch.testing.assert_close(stage.blocks[0].mixer.out_proj.weight.double(), expected, rtol=2e-3, atol=1e-4)


def test_every_stage_follows_the_teacher_and_only_readouts_change_without_inputs(teacher, student, images):
    axes, before = principal_axes(teacher, images, 12), {n: p.clone() for n, p in student.named_parameters()}
    start = stream_errors(student, teacher, images, axes, [0, 5])
    report = fit_stages(teacher, student, images, inputs=False, progress=False)
    after = stream_errors(student, teacher, images, axes, [0, 5])
    assert all(b < 0.95 * a for a, b in zip(start, after, strict=True)), (start, after)
    assert [row.layer for row in report.rows] == [0, 1, 2, 3]
    assert [row.teacher_layer for row in report.rows] == [0, 2, 3, 5]
    assert [row.tokens for row in report.rows] == [40 * 64, 40 * 16, 40 * 16, 40 * 16]
    assert report.left_out == (0,)
    # the report's own errors are those of the test
    assert [report.rows[i].stream_error for i in (0, 3)] == pytest.approx(after, rel=1e-3)
    changed = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    blocks = [f"stages.{stage}.blocks.{i}" for stage, depth in enumerate(DEPTHS) for i in range(depth)]
    bias = {f"{block}.mlp.fc2.bias" for block in blocks}
    assert (
        changed == {f"{block}.{end}" for block in blocks for end in ("mixer.out_proj.weight", "mlp.fc2.weight")} | bias
    )


def test_blocks_without_mlp_aim_at_the_whole_block(teacher, images):
    torch.manual_seed(3)
    student = vmamba_v0(DIMS, DEPTHS, num_classes=3).eval()
    report = fit_stages(teacher, student, images, progress=False)
    assert all(row.mlp_r2 is None for row in report.rows)
    ends = stream_errors(student, teacher, images, principal_axes(teacher, images, 12), [0, 5])
    assert [report.rows[i].stream_error for i in (0, 3)] == pytest.approx(ends, rel=1e-3)


def test_neurons_that_subclone_chose(teacher, student, images):
    kept = subclone(teacher, student, magnitude_importance, layer_map="uniform").kept
    projections = [torch.eye(24)[list(kept[f"residual.{stage}"])] for stage in (0, 1)]
    report = fit_stages(teacher, student, images, projections=projections, progress=False)
    assert len(report.rows) == 4 and all(row.stream_error < 1.5 for row in report.rows)


def test_a_wider_stage_needs_a_projection(teacher, images):
    student = vmamba_v2((6, 36), DEPTHS, num_classes=3)
    with pytest.raises(ValueError, match=r"stages have \[6, 36\] channels, the teacher 24: build a narrower student"):
        fit_stages(teacher, student, images)
    wide = [torch.eye(6, 24), torch.eye(36, 24)]
    assert len(fit_stages(teacher, student, images, projections=wide, progress=False).rows) == 4


def test_other_images_and_a_teacher_without_class_token():
    torch.manual_seed(4)
    teacher = ViT((32, 64), 8, dim=12, depth=2, heads=2, class_token=False, pool="mean", num_classes=3).eval()
    student = vmamba_v2((4, 8), (1, 2), num_classes=3).eval()
    report = fit_stages(teacher, student, [torch.randn(4, 3, 32, 64)], progress=False)
    assert report.left_out == () and [row.tokens for row in report.rows] == [4 * 8 * 16, 4 * 4 * 8, 4 * 4 * 8]


def test_resumes_where_it_stopped(teacher, student, images, tmp_path):
    torch.manual_seed(2)
    again = vmamba_v2(DIMS, DEPTHS, num_classes=3).eval()
    first = fit_stages(teacher, student, images, checkpoint=tmp_path, progress=False)
    (tmp_path / "stage_1" / "layer_0002.pt").unlink()  # as if stopped in the middle of the second stage
    second = fit_stages(teacher, again, images, checkpoint=tmp_path, progress=False)
    assert [row[:4] for row in first.rows] == [row[:4] for row in second.rows]
    for ours, theirs in zip(again.state_dict().values(), student.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": lambda x: x}, "fit_stages has no tokens: every stage gets its own"),
        ({"process_group": object()}, "give projections= that are the same in all processes"),
        ({"layers": [0]}, "fit_stages has no layers: every stage gets its own"),
        ({"layer_map": {0: 3, 1: 2, 2: 2, 3: 2}}, r"4 student layers would follow teacher layers \[3, 2, 2, 2\] of 6"),
        ({"projections": [torch.eye(6, 24)]}, r"have \[6\] rows, the student's stages \[6, 12\] channels"),
    ],
)
def test_unfit_arguments_are_refused(teacher, student, images, change, message):
    with pytest.raises(ValueError, match=message):
        fit_stages(teacher, student, images, **change)


def test_batches_that_end_are_refused(teacher, student, images):
    for batches in (iter(images), []):
        with pytest.raises(ValueError, match="must hold at least one, and be iterated over several times"):
            fit_stages(teacher, student, batches)


def test_each_function_names_the_other(teacher, student, images):
    with pytest.raises(ValueError, match="fit_stages solves a pyramid"):
        fit_layers(teacher, student, images)
    with pytest.raises(ValueError, match=r"a ViT without `stages` of `blocks`.*fit_layers solves"):
        fit_stages(teacher, teacher, images)
