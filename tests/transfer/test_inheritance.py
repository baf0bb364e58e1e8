import json
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from transmamba.models import MambaLM, VisionMamba, ViT
from transmamba.transfer import (
    SSM_PARAMETERS,
    SubcloneReport,
    first_importance,
    magnitude_importance,
    random_importance,
    stability_importance,
    subclone,
    taylor_importance,
)
from transmamba.transfer.source import Source
from transmamba.transfer.student import Student
from transmamba.transfer.teachers import translate

from .conftest import snapshot, unchanged


def vit(dim=12, depth=3, img_size=8, num_classes=5, **options):
    return ViT(img_size=img_size, patch_size=2, dim=dim, depth=depth, heads=3, num_classes=num_classes, **options)


def vision_mamba(dim=12, depth=3, img_size=8, num_classes=5, **options):
    return VisionMamba(img_size=img_size, patch_size=2, dim=dim, depth=depth, num_classes=num_classes, **options)


# values


def test_values_follow_the_scores_derived_by_hand():
    teacher = {"fc1": torch.tensor([[3.0, 0.0, -2.0], [1.0, 0.0, 1.0]]), "fc2": torch.tensor([[1.0, 5.0]] * 3)}
    student = {"fc1": torch.zeros(1, 2), "fc2": torch.zeros(2, 1)}
    plan = {"fc1": ("fc1", "hidden residual"), "fc2": ("fc2", "residual hidden")}
    report = subclone(teacher, student, magnitude_importance, plan=plan)
    # hidden: (3+0+2 + 1+1+1) / 6 against (1+0+1 + 5+5+5) / 6; residual: (4+6)/4, (0+6)/4, (3+6)/4
    assert report.kept == {"hidden": (1,), "residual": (0, 2)}
    assert student["fc1"].tolist() == [[1.0, 1.0]]
    assert student["fc2"].tolist() == [[5.0], [5.0]]


def test_student_computes_the_teacher_when_only_dead_neurons_go(stream, plan):
    teacher, student = stream(7, 11), stream(5, 6)
    dim_alive, hidden_alive = torch.tensor([0, 2, 3, 5, 6]), torch.tensor([1, 2, 4, 7, 9, 10])
    dead_dim = [d for d in range(7) if d not in dim_alive]
    dead_hidden = [h for h in range(11) if h not in hidden_alive]
    with torch.no_grad():
        teacher.embed.weight[dead_dim] = 0
        teacher.head.weight[:, dead_dim] = 0
        for block in teacher.blocks:
            block["fc1"].weight[dead_hidden] = 0
            block["fc1"].bias[dead_hidden] = 0
            block["fc2"].weight[:, dead_hidden] = 0
            block["fc1"].weight[:, dead_dim] = 0
            block["fc2"].weight[dead_dim] = 0
    report = subclone(teacher, student, magnitude_importance, plan=plan)
    x = torch.randn(13, 3)
    assert report.kept["residual"] == tuple(dim_alive.tolist())
    assert report.kept["hidden.1"] == tuple(hidden_alive.tolist())
    torch.testing.assert_close(student(x), teacher(x))


def test_permuting_the_teachers_neurons_consistently_gives_the_same_student_function(stream, plan):
    teacher, permuted = stream(7, 11), stream(7, 11)
    p, q = torch.randperm(7), torch.randperm(11)
    permuted.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        permuted.embed.weight.copy_(teacher.embed.weight[p])
        permuted.head.weight.copy_(teacher.head.weight[:, p])
        for ours, theirs in zip(permuted.blocks, teacher.blocks, strict=True):
            ours["fc1"].weight.copy_(theirs["fc1"].weight[q][:, p])
            ours["fc1"].bias.copy_(theirs["fc1"].bias[q])
            ours["fc2"].weight.copy_(theirs["fc2"].weight[p][:, q])
    x = torch.randn(13, 3)
    torch.testing.assert_close(permuted(x), teacher(x))
    first, second = stream(5, 6), stream(5, 6)
    subclone(teacher, first, magnitude_importance, plan=plan)
    subclone(permuted, second, magnitude_importance, plan=plan)
    torch.testing.assert_close(first(x), second(x))


def test_equal_sizes_copy_exactly_whatever_the_importance():
    teacher, student = vit(), vision_mamba()
    report = subclone(teacher, student, random_importance(3))
    theirs, ours = teacher.state_dict(), student.state_dict()
    for name, source in report.copied.items():
        torch.testing.assert_close(ours[name], theirs[source], rtol=0, atol=0)
    assert set(report.sliced) == {"pos_embed"}  # the class row goes
    torch.testing.assert_close(ours["pos_embed"], theirs["pos_embed"][:, 1:], rtol=0, atol=0)
    assert report.kept == {}


def test_a_narrower_student_has_one_residual_set_and_one_hidden_set_per_mlp():
    teacher, student = vit(12, 3), vision_mamba(8, 2)
    report = subclone(teacher, student, magnitude_importance)
    theirs, ours = teacher.state_dict(), student.state_dict()
    residual = list(report.kept["residual"])
    assert sorted(report.kept) == ["hidden.0", "hidden.1", "residual"]
    for layer in range(2):
        hidden = list(report.kept[f"hidden.{layer}"])
        block = f"blocks.{layer}."
        assert torch.equal(ours[block + "norm1.weight"], theirs[block + "norm1.weight"][residual])
        assert torch.equal(ours[block + "mlp.fc1.weight"], theirs[block + "mlp.fc1.weight"][hidden][:, residual])
        assert torch.equal(ours[block + "mlp.fc1.bias"], theirs[block + "mlp.fc1.bias"][hidden])
        assert torch.equal(ours[block + "mlp.fc2.weight"], theirs[block + "mlp.fc2.weight"][residual][:, hidden])
    assert torch.equal(ours["patch_embed.proj.weight"], theirs["patch_embed.proj.weight"][residual])
    assert torch.equal(ours["head.weight"], theirs["head.weight"][:, residual])


def test_layers_follow_the_layer_map():
    teacher, student = vit(depth=5), vision_mamba(depth=3)
    report = subclone(teacher, student, first_importance, layer_map="uniform")
    assert report.layers == {0: 0, 1: 2, 2: 4}
    assert report.copied["blocks.1.norm2.bias"] == "blocks.2.norm2.bias"


def test_a_deeper_student_keeps_its_last_layers_and_says_so():
    student = vision_mamba(depth=3)
    before = snapshot(student)
    report = subclone(vit(depth=2), student, first_importance)
    assert torch.equal(student.blocks[2].mlp.fc1.weight, before["blocks.2.mlp.fc1.weight"])
    assert "gives student layer 2 no teacher layer" in report.skipped["blocks.2.mlp.fc1.weight"]


def test_rescale_keeps_the_spread_of_sums_over_the_inputs():
    teacher, plain, scaled = vit(12), vision_mamba(8), vision_mamba(8)
    subclone(teacher, plain, first_importance)
    subclone(teacher, scaled, first_importance, rescale="sqrt")
    plain, scaled = plain.state_dict(), scaled.state_dict()
    torch.testing.assert_close(scaled["blocks.0.mlp.fc1.weight"], plain["blocks.0.mlp.fc1.weight"] * math.sqrt(12 / 8))
    torch.testing.assert_close(scaled["head.weight"], plain["head.weight"] * math.sqrt(12 / 8))
    for name in ("pos_embed", "norm.weight", "blocks.0.mlp.fc1.bias", "patch_embed.proj.weight"):
        assert torch.equal(scaled[name], plain[name])


def test_rescale_leaves_tables_alone():
    teacher = {"weight": torch.randn(7, 12)}
    for axes, factor in (("vocab residual", 1.0), ("sequence residual", 1.0), ("class residual", math.sqrt(12 / 8))):
        student = nn.Embedding(7, 8)
        subclone(teacher, student, first_importance, plan={"weight": ("weight", axes)}, rescale="sqrt")
        torch.testing.assert_close(student.weight, teacher["weight"][:, :8] * factor)


@pytest.mark.parametrize("axes", ["residual head*head_dim", "head*head_dim+head*head_dim residual"])
def test_an_axis_whose_factors_are_unknown_is_copied_whole(axes):
    teacher, student = {"weight": torch.randn(12, 12)}, nn.Linear(12, 12, bias=False)
    subclone(teacher, student, first_importance, plan={"weight": ("weight", axes)})
    assert torch.equal(student.weight, teacher["weight"])


def test_a_student_of_one_number_is_inherited_in_full():
    student = nn.Linear(1, 1, bias=False)
    report = subclone({"w": torch.ones(1, 1)}, student, {}, plan={"weight": ("w", "class residual")})
    assert report.fraction == 1.0


def test_a_grown_student_holds_the_teacher_and_its_own_initialisation_around_it(stream, plan):
    teacher, student = stream(5, 7), stream(6, 11)
    before = snapshot(student)
    report = subclone(teacher, student, first_importance, plan=plan, grow=True)
    weight = student.blocks[0]["fc1"].weight
    assert torch.equal(weight[:7, :5], teacher.blocks[0]["fc1"].weight)
    assert torch.equal(weight[7:], before["blocks.0.fc1.weight"][7:])
    assert torch.equal(weight[:, 5:], before["blocks.0.fc1.weight"][:, 5:])
    assert report.fraction == sum(p.numel() for p in teacher.parameters()) / sum(
        p.numel() for p in student.parameters()
    )


# tensors that are left alone


def test_ssm_parameters_keep_their_initialisation():
    student = vision_mamba(8)
    before = snapshot(student)
    report = subclone(vit(), student, magnitude_importance)
    mixers = [name for name in before if ".mixer." in name]
    assert mixers
    for name in mixers:
        assert torch.equal(student.state_dict()[name], before[name])
        assert report.skipped[name].startswith("SSM parameter")


def test_a_student_without_mlp_inherits_the_rest():
    report = subclone(vit(), vision_mamba(mlp=False), magnitude_importance)
    assert "blocks.2.norm1.weight" in report.copied
    assert not any("mlp" in name for name in {*report.copied, *report.skipped})


def test_an_rms_norm_takes_the_weight_only():
    student = vision_mamba()
    for block in student.blocks:
        block.norm1 = nn.RMSNorm(12)
    report = subclone(vit(), student, magnitude_importance)
    assert "blocks.0.norm1.weight" in report.copied
    assert "blocks.0.norm1.bias" not in {*report.copied, *report.skipped}


def test_kinds_of_norms_are_told_by_the_module_or_else_by_a_bias():
    module = nn.ModuleDict({"centred": nn.LayerNorm(3, bias=False), "plain": nn.RMSNorm(3), "biased": nn.LayerNorm(3)})
    tensors = module.state_dict()
    for weights, kinds in ((module, ["layer", "rms", "layer"]), (tensors, ["rms", "rms", "layer"])):
        assert [Student(weights, tensors).norm(name) for name in module] == kinds


def test_a_head_for_other_classes_is_skipped_with_the_reason():
    report = subclone(vit(num_classes=5), vision_mamba(num_classes=3), magnitude_importance)
    assert report.skipped["head.weight"] == "the teacher has 5 classes, the student 3"
    assert report.skipped["head.bias"] == "the teacher has 5 classes, the student 3"


def test_excluded_names_are_left_alone():
    student = vision_mamba()
    before = snapshot(student)
    report = subclone(vit(), student, magnitude_importance, exclude=["head.*", "pos_embed", *SSM_PARAMETERS[:3]])
    assert torch.equal(student.pos_embed, before["pos_embed"])
    assert report.skipped["head.bias"] == "excluded, head.*"


# in place


def test_dtype_storage_and_requires_grad_stay():
    student = vision_mamba(8).to(torch.bfloat16)
    pointers = {name: p.data_ptr() for name, p in student.named_parameters()}
    subclone(vit().double(), student, magnitude_importance)
    for name, p in student.named_parameters():
        assert p.data_ptr() == pointers[name]
        assert p.dtype == torch.bfloat16
        assert p.requires_grad
        assert p.grad_fn is None


def test_state_dicts_do_as_well_as_modules():
    teacher, one, two = vit(), vision_mamba(8), vision_mamba(8)
    two.load_state_dict(one.state_dict())
    first = subclone(teacher, one, magnitude_importance)
    second = subclone(teacher.state_dict(), two.state_dict(), magnitude_importance)
    # only a module shows that it is one of ours, and that the eps of its norms is another
    assert first.differs == ("eps: the teacher's norms have 1e-06, the student's 1e-05",)
    assert (first.family, second.family) == ("transmamba_transformer", "timm_vit")
    assert set(first.unused) == set(second.unused)
    assert replace(second, family=first.family, differs=first.differs, unused=first.unused) == first
    assert unchanged(two, one.state_dict())


def test_tied_tensors_are_written_once_and_counted_once():
    teacher = {"embed.weight": torch.ones(7, 3), "head.weight": 2 * torch.ones(7, 3)}
    shared = torch.zeros(7, 3)
    plan = {name: (name, "vocab residual") for name in teacher}
    report = subclone(teacher, {"embed.weight": shared, "head.weight": shared}, first_importance, plan=plan)
    assert shared.eq(1).all()
    assert report.skipped == {"head.weight": "tied to embed.weight, which is written"}
    assert report.fraction == 1.0
    del plan["head.weight"]
    report = subclone(teacher, {"embed.weight": shared, "head.weight": shared}, first_importance, plan=plan)
    assert report.skipped == {"head.weight": "tied to embed.weight, which is written"}


def test_tensors_without_values_are_not_tied():
    student = {"w": torch.zeros(2, 3), **{name: torch.zeros(2, 3, device="meta") for name in ("a", "b")}}
    report = subclone({"w": torch.ones(2, 3)}, student, {}, plan={"w": ("w", "output input")})
    assert report.fraction == 1 / 3 and report.skipped["a"] == "the plan has no entry for it"


def test_a_bias_that_the_teacher_lacks_is_zero():
    for source, zeros in (
        (Source(translate(MambaLM(11, 8, depth=1))), {"norm.bias"}),
        (Source({"w": torch.ones(2)}), set()),
    ):
        assert {name for name in source if not source[name].any()} >= zeros and zeros <= set(source)
        assert len(source) == len(list(source)) and all(name in source for name in source)
        assert "offset" not in source


def test_teacher_is_not_touched_and_the_student_owns_its_memory():
    teacher, student = vit(), vision_mamba()
    before = snapshot(teacher)
    subclone(teacher, student, magnitude_importance)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1)
    assert unchanged(teacher, before)


# the report


def test_report_accounts_for_every_student_tensor_and_prints_it():
    student = vision_mamba(8)
    report = subclone(vit(), student, magnitude_importance)
    names = [*report.copied, *report.sliced, *report.skipped]
    assert sorted(names) == sorted(student.state_dict())
    assert all(re.sub(r"\.\d+\.", ".*.", name) in str(report) for name in names)
    written = report.to_dict()
    assert all(any(name in written[kind] for kind in ("copied", "sliced", "skipped")) for name in names)
    written = sum(student.state_dict()[name].numel() for name in report.inherited)
    assert report.fraction == written / sum(p.numel() for p in student.parameters())
    assert f"{report.fraction:.1%} of the student's parameters initialised" in str(report)


def test_complex_numbers_are_counted_reported_and_inherited():
    teacher = {"w": torch.randn(3, 2, dtype=torch.cfloat), "v": torch.randn(3), "A": torch.randn(5)}
    student = {
        "w": torch.zeros(2, 2, dtype=torch.cfloat), "v": torch.zeros(2, dtype=torch.cfloat),
        "new": torch.zeros(7, dtype=torch.cdouble),
    }  # fmt: skip
    teacher["w"][0] *= 1e-3  # the least of the three neurons
    teacher["v"][0] = 0.0
    plan = {"w": ("w", "hidden input"), "v": ("v", "hidden")}
    report = subclone(teacher, student, magnitude_importance, plan=plan)
    assert report.kept == {"hidden": (1, 2)} and report.inherited == {"w", "v"}
    assert torch.equal(student["w"], teacher["w"][1:]) and torch.equal(student["v"], teacher["v"][1:].cfloat())
    assert report.fraction == 6 / 13 and "new" in report.skipped


def test_complex_teachers_have_scores():
    linear = nn.Linear(2, 3, bias=False, dtype=torch.cfloat)
    x = torch.randn(5, 2, dtype=torch.cfloat)
    scores = taylor_importance(linear, [x], lambda model, batch: model(batch).abs().square().sum())
    weight = linear.weight.detach()
    # d/ds sum |s W x|^2 at s = 1, weight by weight: Re(conj(w) 2 (W X^H X))
    gram = (2 * weight @ x.T @ x.conj() * weight.conj()).real.abs()
    torch.testing.assert_close(scores["weight"], gram)
    moved = stability_importance({"w": weight}, {"w": weight + 3j})
    torch.testing.assert_close(moved["w"], torch.full((3, 2), -3.0))


def test_report_survives_json():
    report = subclone(vit(), vision_mamba(8), magnitude_importance)
    loaded = json.loads(json.dumps(report.to_dict()))
    assert loaded["kept"]["residual"] == list(report.kept["residual"])
    assert set(loaded) == {
        "copied", "sliced", "skipped", "kept", "layers", "fraction", "family", "differs", "unused",
    }  # fmt: skip


def test_unused_tensors_of_several_layers_share_a_line():
    unused = ("head.weight", "blocks.0.scale", "blocks.1.scale")
    lines = str(SubcloneReport({}, {}, {}, {}, {}, 0.0, unused=unused)).splitlines()
    assert lines[:2] == ["unused in the teacher: head.weight", "unused in the teacher: blocks.*.scale (2)"]


def test_report_is_frozen():
    report = subclone(vit(), vision_mamba(), magnitude_importance)
    with pytest.raises(AttributeError, match="cannot assign"):
        report.fraction = 1.0
