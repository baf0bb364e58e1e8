"""Students narrower and shallower than their teacher: a set of neurons, and a projection of the stream."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from transmamba.models import PlainMamba, Vim, VisionMamba, ViT
from transmamba.models.vision_mamba import SNAKES
from transmamba.nn import Mamba2Mixer, Mamba3Mixer, MambaMixer
from transmamba.transfer import fit_layers, magnitude_importance, principal_axes, project_start, subclone

IMAGE = {"img_size": 8, "patch_size": 2, "num_classes": 3}


def perturbed(model, size=0.3):
    for parameter in model.parameters():
        parameter.data += size * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return perturbed(ViT(**IMAGE, dim=24, depth=4, heads=2, registers=1))


@pytest.fixture
def images():
    return list(torch.randn(6, 8, 3, 8, 8, generator=torch.Generator().manual_seed(1)).unbind())


def patches(x):
    return x[:, 2:]


def error(student, teacher, projection, images):
    """Compute the squared error of the last stream to the projected teacher's, relative to its variance."""
    with torch.no_grad():
        pairs = [
            (student.forward_features(x).layers[-1], patches(teacher.forward_features(x).layers[-1]) @ projection.T)
            for x in images
        ]
    ours, theirs = (torch.cat(side).flatten(0, 1) for side in zip(*pairs, strict=True))
    return float((ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum())


def test_the_stream_begins_at_the_projected_one(teacher, images):
    axes = principal_axes(teacher, images, 12)
    for student in (
        VisionMamba(**IMAGE, dim=12, depth=2),
        ViT(**IMAGE, dim=12, depth=2, registers=1, mixer=partial(MambaMixer, directions=2)),
    ):
        project_start(teacher, student, axes)
        begin = teacher._embed(images[0])
        begin = begin if isinstance(student, ViT) else patches(begin)
        torch.testing.assert_close(student._embed(images[0]), begin @ axes.T, atol=1e-5, rtol=1e-5)


def test_a_whole_basis_keeps_the_mlps(teacher, images):
    """With P orthogonal and tokens of zero mean, norm(x) turned is the norm of the turned x."""
    turn = torch.linalg.qr(torch.cat([torch.ones(24, 1), torch.randn(24, 23)], 1))[0][:, 1:].T  # without the mean
    student = ViT(**IMAGE, dim=23, depth=4, registers=1, mixer=partial(MambaMixer, directions=2))
    project_start(teacher, student, turn)
    x = torch.randn(5, 24)
    theirs, ours = teacher.blocks[2], student.blocks[2]
    hidden = theirs.mlp.fc2.weight.norm(dim=0).topk(92).indices.sort().values
    normed = F.layer_norm(x, (24,)) * theirs.norm2.weight + theirs.norm2.bias
    wanted = theirs.mlp.fc1(normed)[:, hidden]
    torch.testing.assert_close(ours.mlp.fc1(F.layer_norm(x, (24,)) @ turn.T), wanted, atol=1e-4, rtol=1e-4)
    assert ours.norm2.weight.eq(1).all() and ours.norm2.bias.eq(0).all()


@pytest.mark.parametrize("orders", [("forward",), ("forward", "backward"), SNAKES])
@pytest.mark.parametrize("kind", ["neurons", "axes"])
def test_a_vision_mamba_of_half_the_width_and_depth_is_solved(teacher, images, kind, orders):
    student = VisionMamba(**IMAGE, dim=12, depth=2, orders=orders)
    if kind == "neurons":
        report = subclone(teacher, student, magnitude_importance, layer_map="uniform")
        projection = torch.eye(24)[list(report.kept["residual"])]
    else:
        projection = principal_axes(teacher, images[:4], 12)
        written = project_start(teacher, student, projection)
        assert {name.split(".")[0] for name in written} == {"patch_embed", "pos_embed", "blocks"}
    before = error(student.eval(), teacher, projection, images[4:])
    rows = fit_layers(teacher, student, images[:4], projection=projection, tokens=patches, progress=False).rows
    assert [row.teacher_layer for row in rows] == [0, 3] and all(row.mlp_r2 is not None for row in rows)
    # an untrained teacher on noise: 24 random features explain little of it, but less is wrong than before
    assert rows[-1].stream_error < 0.75
    assert error(student, teacher, projection, images[4:]) < before / 2


@pytest.mark.parametrize("mixer", [Mamba2Mixer, Mamba3Mixer])
def test_a_vit_of_other_mixers_is_solved(teacher, images, mixer):
    mixers = partial(mixer, d_state=4, head_dim=6, directions=2)
    student = ViT(**IMAGE, dim=12, depth=2, registers=1, mixer=mixers, orders=("forward", "backward")).eval()
    axes = principal_axes(teacher, images[:4], 12)
    project_start(teacher, student, axes)
    rows = fit_layers(teacher, student, images[:4], projection=axes, progress=False).rows
    assert rows[-1].stream_error < 1


@pytest.mark.parametrize("class_tokens", ["first", "middle", "none"])
def test_the_stream_of_a_vim_begins_at_the_projected_one(teacher, images, class_tokens):
    """Token by token: its class token stands elsewhere, and so do its rows of the table."""
    student = Vim(**IMAGE, dim=12, depth=2, class_tokens=class_tokens)
    axes = principal_axes(teacher, images, 12)
    project_start(teacher, student, axes)
    begin = teacher._embed(images[0]) @ axes.T
    parts = {"first": [begin[:, :1], begin[:, 2:]], "none": [begin[:, 2:]],
             "middle": [begin[:, 2:10], begin[:, :1], begin[:, 10:]]}  # fmt: skip
    torch.testing.assert_close(student._embed(images[0]), torch.cat(parts[class_tokens], 1), atol=1e-5, rtol=1e-5)


def test_a_vim_of_projected_axes_is_solved(teacher, images):
    student = Vim(**IMAGE, dim=12, depth=2).eval()
    axes = principal_axes(teacher, images[:4], 12)
    project_start(teacher, student, axes)
    report = fit_layers(teacher, student, images[:4], projection=axes, progress=False)
    assert report.left_out == (1,) and report.rows[-1].stream_error < 1


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_tokens_without_a_row_of_their_own_carry_their_position(images, kept):
    """Teacher and student have rows for other tokens: the sums of token and row are what must agree."""
    whole = perturbed(ViT(**IMAGE, dim=24, depth=2, heads=2, registers=2, prefix_positions=3))
    student = ViT(**IMAGE, dim=12, depth=2, heads=2, registers=2, prefix_positions=kept)
    axes = torch.linalg.qr(torch.randn(24, 12))[0].T
    project_start(whole, student, axes)
    torch.testing.assert_close(student._embed(images[0]), whole._embed(images[0]) @ axes.T, atol=1e-5, rtol=1e-5)


def test_a_teacher_without_a_table_leaves_zeros(images):
    teacher = perturbed(ViT(**IMAGE, dim=24, depth=2, heads=2, position_table=False))
    axes = torch.linalg.qr(torch.randn(24, 12))[0].T
    for student in (VisionMamba(**IMAGE, dim=12, depth=2), ViT(**IMAGE, dim=12, depth=2, position_table=False)):
        project_start(teacher, student, axes)
        begin = teacher._embed(images[0]) @ axes.T
        begin = begin if isinstance(student, ViT) else begin[:, 1:]
        torch.testing.assert_close(student._embed(images[0]), begin, atol=1e-5, rtol=1e-5)


def test_an_mlp_without_biases_leaves_none(teacher, images):
    student = perturbed(VisionMamba(**IMAGE, dim=12, depth=2))
    for block in teacher.blocks:
        block.mlp.fc1.bias = None
        torch.nn.init.zeros_(block.norm2.bias)
    project_start(teacher, student, principal_axes(teacher, images[:2], 12))
    assert not any(block.mlp.fc1.bias.any() for block in student.blocks)


@pytest.mark.parametrize("dim", [0, 25])
def test_axes_are_one_to_the_width(teacher, images, dim):
    with pytest.raises(ValueError, match=f"dim must lie between 1 and the stream's width 24, got {dim}"):
        principal_axes(teacher, images[:1], dim)
    assert [len(principal_axes(teacher, images[:1], count)) for count in (1, 24)] == [1, 24]


def test_clear_errors(teacher, images):
    axes = torch.eye(24)[:12]
    with pytest.raises(ValueError, match=r"the projection is \(12, 24\), the widths are \(10, 24\), student first"):
        project_start(teacher, VisionMamba(**IMAGE, dim=10, depth=2), axes)
    with pytest.raises(ValueError, match=r"the student's patches are \(3, 4, 4\), the teacher's \(3, 2, 2\)"):
        project_start(teacher, VisionMamba(8, 4, dim=12, depth=2), axes)
    with pytest.raises(ValueError, match=r"the grids are \(8, 8\) and \(4, 4\), student first"):
        project_start(teacher, VisionMamba(16, 2, dim=12, depth=2), axes)
    with pytest.raises(ValueError, match="has a reg_token of 3 tokens that the teacher lacks"):
        project_start(teacher, ViT(**IMAGE, dim=12, depth=2, registers=3), axes)
    with pytest.raises(ValueError, match="student is a Linear without a list `blocks`"):
        project_start(teacher, torch.nn.Linear(2, 2), axes)
    bare = ViT(**IMAGE, dim=12, depth=2, registers=1, position_table=False)
    with pytest.raises(ValueError, match=r"the student has no table for the teacher's positions \(pos_embed\)"):
        project_start(teacher, bare, axes)
    with pytest.raises(ValueError, match=r"student is a PlainMamba, whose stem is not one matrix on patches"):
        project_start(teacher, PlainMamba(**IMAGE, dim=12, depth=2), axes)
    with pytest.raises(ValueError, match=r"teacher normalises its tokens before the first block \(norm_pre\)"):
        project_start(ViT(**IMAGE, dim=24, depth=4, norm_pre=True), VisionMamba(**IMAGE, dim=12, depth=2), axes)
    with pytest.raises(ValueError, match=r"class or register tokens at \(0, 17\), the teacher at \(0, 1\)"):
        project_start(teacher, Vim(**IMAGE, dim=12, depth=2, class_tokens="both"), axes)
    shifted = perturbed(ViT(**IMAGE, dim=24, depth=4, registers=1))
    with pytest.raises(ValueError, match="the student's patch embedding has no bias, the teacher's has one"):
        project_start(shifted, ViT(**IMAGE, dim=12, depth=2, registers=1, patch_bias=False), axes)
