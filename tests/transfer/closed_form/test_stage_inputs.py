"""The last map of a stem or downsampling is the ridge solution towards the teacher's stream, and the norm fits it."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.transfer.closed_form.images import small_images, small_vit
from transmamba.models import VMamba, vmamba_v0, vmamba_v2
from transmamba.models.vmamba_block import VMambaBlock
from transmamba.nn.norm import RMSNorm
from transmamba.nn.ss2d import SS2D
from transmamba.nn.stem import ConvNorm
from transmamba.transfer import fit_stages, principal_axes
from transmamba.transfer.closed_form.stage_inputs import _gain_axis

RIDGE = 1e-2


@pytest.fixture
def teacher():
    return small_vit(depth=4)


@pytest.fixture
def images():
    return small_images(4)


def pyramid(seed=2, **options):
    """Build two stages on grids of 8 x 8 and 4 x 4."""
    torch.manual_seed(seed)
    options = {"downsample": partial(ConvNorm, kernel_size=3, stride=2)} | options
    stem = nn.Sequential(ConvNorm(3, 6, kernel_size=4, stride=4))
    block = lambda dim, _: VMambaBlock(dim, SS2D(dim, 1, gated=False))  # noqa: E731 - one line, used once
    return VMamba((6, 12), (1, 1), stem=stem, block=block, num_classes=3, **options).eval()


@torch.no_grad()
def second_stage(student, teacher, images):
    """Return the second stage's first stream, its target and the map before the downsampling, on all images."""
    axes, stage = principal_axes(teacher, images, 12), student.stages[0]
    begun, targets, maps = [], [], []
    hooks = [
        student.stages[1].blocks[0].register_forward_pre_hook(lambda _, given: begun.append(given[0])),
        stage.downsample.register_forward_pre_hook(lambda _, given: maps.append(given[0])),
    ]
    for x in images:
        student(x)
        # the second of two student layers follows the last of four teacher layers, and starts before that
        targets.append(teacher.forward_features(x).layers[2][:, 1:] @ axes.T)
    for hook in hooks:
        hook.remove()
    return torch.cat(begun).double(), torch.cat(targets).double(), torch.cat(maps).double()


def r2(ours, theirs):
    ours, theirs = ours.flatten(0, 1), theirs.flatten(0, 1)
    return 1 - float((ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum())


def test_a_convolution_is_the_ridge_solution_on_its_patches(teacher, images):
    student = pyramid(downsample=partial(ConvNorm, kernel_size=3, stride=2, normed=False))
    report = fit_stages(teacher, student, images, ridge=RIDGE, progress=False)
    begun, target, maps = second_stage(student, teacher, images)
    # by hand: a border of zeros, and the 3 x 3 around every second place
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1))
    places = [padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten(1) for i in range(4) for j in range(4)]
    z, t = torch.stack(places, 1).flatten(0, 1), target.flatten(0, 1)
    z_mean, t_mean = z.mean(0), t.mean(0)
    gram = (z - z_mean).T @ (z - z_mean)
    eye = torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * eye, (z - z_mean).T @ (t - t_mean)).T
    conv = student.stages[0].downsample.conv
    torch.testing.assert_close(conv.weight.double().flatten(1), weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(conv.bias.double(), t_mean - weight @ z_mean, rtol=1e-3, atol=1e-4)
    assert report.inputs[1] == pytest.approx(r2(begun, target), abs=1e-4)
    assert "R2 before each stage: " in str(report)


def test_gain_and_shift_of_a_norm_are_solved_by_channel(teacher, images):
    student = pyramid()
    report = fit_stages(teacher, student, images, ridge=RIDGE, progress=False)
    begun, target, _ = second_stage(student, teacher, images)
    norm = student.stages[0].downsample.channel_norm
    x, t = ((begun - norm.bias) / norm.weight).flatten(0, 1), target.flatten(0, 1)
    x_mean, t_mean = x.mean(0), t.mean(0)
    spread = (x - x_mean).square().sum(0)
    gain = ((x - x_mean) * (t - t_mean)).sum(0) / (spread + RIDGE * spread.mean())
    torch.testing.assert_close(norm.weight.double(), gain, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(norm.bias.double(), t_mean - gain * x_mean, rtol=1e-3, atol=1e-5)
    assert report.inputs[1] == pytest.approx(r2(begun, target), abs=1e-4)


class OffsetNorm(nn.RMSNorm):
    """Multiplies by 1 + weight, as some language models do."""

    def forward(self, x):
        return nn.functional.rms_norm(x, self.normalized_shape, 1 + self.weight)


class Scale(nn.Module):
    """A gain and a shift, which no norm's name announces."""

    def __init__(self, dim):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x):
        return x * self.weight + self.bias


class MapNorm(nn.Module):
    """A convolution and a norm of maps."""

    def __init__(self, norm, dim, out):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(dim, out, 2, 2), norm(out)

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize(
    "downsample",
    [partial(ConvNorm, kernel_size=3, stride=2, norm=OffsetNorm), partial(MapNorm, nn.PReLU)],
    ids=["1 + weight", "PReLU"],
)
def test_whatever_does_not_multiply_by_its_weight_is_refused_and_keeps_it(teacher, images, downsample):
    student = pyramid(downsample=downsample)
    *_, module = student.stages[0].downsample.children()
    nn.init.uniform_(module.weight)
    before = module.weight.clone()
    with pytest.raises(ValueError, match="at most a norm behind it that multiplies each channel by its weight"):
        fit_stages(teacher, student, images, ridge=RIDGE, progress=False)
    torch.testing.assert_close(module.weight, before, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gain_is_found_in_half_precision_and_at_any_size(dtype, size):
    scale, offset = Scale(12).to(dtype), OffsetNorm(12).to(dtype)
    x = size * torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        assert _gain_axis(scale, x) == -1
        assert _gain_axis(offset, x) is None


def test_gain_and_shift_are_as_before_whatever_kind_of_tensor_they_are():
    scale = Scale(4)
    del scale.weight
    scale.register_buffer("weight", torch.full((4,), 3.0))
    with torch.no_grad():
        scale.bias.fill_(5.0)
        assert _gain_axis(scale, torch.randn(2, 3, 4)) == -1
    assert scale.weight.tolist() == [3.0] * 4 and scale.bias.tolist() == [5.0] * 4


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, partial(nn.GroupNorm, 2), partial(nn.InstanceNorm2d, affine=True)])
def test_norms_of_maps(teacher, images, norm):
    student = pyramid(downsample=partial(MapNorm, norm))
    report = fit_stages(teacher, student, images, ridge=RIDGE, progress=False)
    begun, target, _ = second_stage(student, teacher, images)
    assert report.inputs[1] == pytest.approx(r2(begun, target), abs=1e-4)


@pytest.mark.parametrize("norm", [nn.LayerNorm, partial(nn.LayerNorm, bias=False), nn.RMSNorm, RMSNorm, Scale])
def test_norms_with_and_without_shift(teacher, images, norm):
    student = pyramid(downsample=partial(ConvNorm, kernel_size=3, stride=2, norm=norm))
    nn.init.zeros_(student.stages[0].downsample.channel_norm.weight)  # a gain of zero is no obstacle
    report = fit_stages(teacher, student, images, ridge=RIDGE, progress=False)
    begun, target, _ = second_stage(student, teacher, images)
    assert report.inputs[1] == pytest.approx(r2(begun, target), abs=1e-4)


def test_positions_behind_the_stem_are_taken_off_its_target(teacher, images):
    student = pyramid(grid=(8, 8))
    nn.init.normal_(student.pos_embed)
    report = fit_stages(teacher, student, images, ridge=RIDGE, progress=False)
    axes, begun, targets = principal_axes(teacher, images, 12)[:6], [], []
    hook = student.stages[0].blocks[0].register_forward_pre_hook(lambda _, given: begun.append(given[0]))
    with torch.no_grad():
        for x in images:
            student(x)
            before = (teacher._embed(x)[:, 1:] @ axes.T).transpose(1, 2).unflatten(2, (4, 4))
            up = nn.functional.interpolate(before, (8, 8), mode="bilinear", align_corners=False)
            targets.append(up.flatten(2).transpose(1, 2))
    hook.remove()
    positions = student.pos_embed.detach().flatten(2).transpose(1, 2)
    ours, theirs = torch.cat(begun) - positions, torch.cat(targets) - positions
    assert report.inputs[0] == pytest.approx(r2(ours.double(), theirs.double()), abs=1e-4)


def test_what_leads_into_stages_changes_on_request_alone(teacher, images):
    for inputs in (True, False):
        for build in (vmamba_v0, vmamba_v2):
            torch.manual_seed(3)
            student = build((6, 12), (1, 1), num_classes=3).eval()
            before = {name: p.clone() for name, p in student.named_parameters()}
            report = fit_stages(teacher, student, images, inputs=inputs, progress=False)
            names = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
            changed = {name for name in names if ".blocks." not in name}
            if build is vmamba_v0:
                last = {"patch_embed.0.conv.weight", "patch_embed.0.conv.bias", "patch_embed.0.channel_norm.weight",
                        "patch_embed.0.channel_norm.bias", "stages.0.downsample.reduction.weight"}  # fmt: skip
            else:
                parts = [f"{part}.{kind}" for part in ("conv", "channel_norm") for kind in ("weight", "bias")]
                last = {f"{module}.{part}" for module in ("patch_embed.2", "stages.0.downsample") for part in parts}
            assert changed == (last if inputs else set())
            assert len(report.inputs) == (2 if inputs else 0)


def test_a_stage_begins_nearer_to_the_teacher(teacher, images):
    """Without it, the first block of a stage has to undo a stream of the size of a norm's output."""
    errors = []
    for inputs in (True, False):
        student = pyramid()
        errors.append(fit_stages(teacher, student, images, inputs=inputs, progress=False).rows[1].stream_error)
    assert errors[0] < 0.9 * errors[1], errors


@pytest.mark.parametrize(
    "downsample",
    [
        lambda before, after: nn.Sequential(ConvNorm(before, after, kernel_size=3, stride=2), nn.GELU()),
        lambda before, after: nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=1)),
        lambda before, after: nn.Conv2d(before, after, 2, 2, groups=2),
    ],
)
def test_other_ends_are_refused(teacher, images, downsample):
    def build(before, after):
        module = downsample(before, after)
        return module if any(True for _ in module.parameters()) else nn.Sequential(Widened(), module)

    student = pyramid(downsample=build)
    with pytest.raises(ValueError, match=r"leads into a stage, which does not end in a linear layer.*inputs=False"):
        fit_stages(teacher, student, images, progress=False)
    assert len(fit_stages(teacher, student, images, inputs=False, progress=False).rows) == 2


class Widened(nn.Module):
    """Twice the channels, without a weight."""

    def forward(self, x):
        return torch.cat([x, x], 1)


def test_a_stage_without_a_name_for_what_leads_into_it(teacher, images):
    class Renamed(VMamba):
        def _embed(self, x):
            return self.stem(x)

    student = pyramid()
    student.stem, student.__class__ = student.patch_embed, Renamed
    del student.patch_embed
    with pytest.raises(ValueError, match="no module leads into a stage by the name `patch_embed` or `downsample`"):
        fit_stages(teacher, student, images, progress=False)
