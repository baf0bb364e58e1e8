"""Every refusal, by its message, and the student as it was."""

import pytest
import torch
from torch import nn

from transmamba.models import VisionMamba, ViT
from transmamba.transfer import first_importance, magnitude_importance, stability_importance, subclone

from .conftest import snapshot, unchanged


def refused(teacher, student, importance, error, message, **options):
    before = snapshot(student)
    with pytest.raises(error, match=message):
        subclone(teacher, student, importance, **options)
    assert unchanged(student, before)


def test_a_wider_student(stream, plan):
    message = r"wider than the teacher on axis 'residual', 7 against 5: .*grow=True"
    refused(stream(5, 6), stream(7, 6), first_importance, ValueError, message, plan=plan)


def test_a_student_tensor_the_plan_invents(stream, plan):
    first = (
        r"embed\.weight, blocks\.0\.fc1\.weight, blocks\.0\.fc1\.bias, blocks\.0\.fc2\.weight, blocks\.1\.fc1\.weight"
    )
    message = rf"student tensors that do not exist: blocks\.\{{i\}}\.fc3\.weight; the student has {first}, \.\.\.$"
    plan |= {"blocks.{i}.fc3.weight": ("blocks.{i}.fc1.weight", "hidden.{i} residual")}
    refused(stream(5, 6), stream(5, 6), first_importance, ValueError, message, plan=plan)


def test_a_teacher_tensor_the_plan_invents(stream, plan):
    first = (
        r"embed\.weight, blocks\.0\.fc1\.weight, blocks\.0\.fc1\.bias, blocks\.0\.fc2\.weight, blocks\.1\.fc1\.weight"
    )
    message = rf"the plan for head\.bias: the teacher has no head\.offset; it has {first}, \.\.\.$"
    plan |= {"head.bias": ("head.offset", "class")}
    refused(stream(5, 6), stream(5, 6), first_importance, ValueError, message, plan=plan)


def test_a_placeholder_that_nothing_fills(stream, plan):
    message = r"the plan for head\.bias: the teacher has no blocks\.\{j\}\.bias"
    plan |= {"head.bias": ("blocks.{j}.bias", "class")}
    refused(stream(5, 6), stream(5, 6), first_importance, ValueError, message, plan=plan)


def test_names_no_family_knows(stream):
    message = r"no family knows these tensors: embed\.weight.* Known families: .*timm_vit.*give subclone a plan"
    refused(stream(5, 6), stream(5, 6), first_importance, ValueError, message)


def test_a_plan_that_invents_many_tensors_names_five(stream, plan):
    plan |= {f"blocks.{{i}}.new{number}": ("blocks.{i}.fc1.bias", "hidden.{i}") for number in range(6)}
    first = ", ".join(rf"blocks\.\{{i\}}\.new{number}" for number in range(5))
    message = rf"student tensors that do not exist: {first}; the student has"
    refused(stream(5, 6), stream(5, 6), first_importance, ValueError, message, plan=plan)


def test_an_exclude_pattern_without_a_match(stream, plan):
    first = r"embed\.weight, blocks\.0\.fc1\.weight, blocks\.0\.fc1\.bias, blocks\.0\.fc2\.weight"
    message = rf"exclude pattern 'haed\.\*' matches no student tensor: expected names such as {first}$"
    refused(stream(5, 6), stream(5, 6), first_importance, ValueError, message, plan=plan, exclude=["haed.*"])


def test_axes_of_one_name_and_two_sizes(stream, plan):
    message = r"student tensor head\.weight has 4 entries on axis 'residual', but residual = 5 by embed\.weight"
    student = stream(5, 6)
    student.head = nn.Linear(4, 5)
    refused(stream(5, 6), student, first_importance, ValueError, message, plan=plan)


def test_another_number_of_axes(stream, plan):
    plan |= {"embed.weight": ("embed.weight", "residual")}
    message = r"student tensor embed\.weight has shape \(5, 3\), but axes 'residual' in the plan"
    refused(stream(5, 6), stream(5, 6), first_importance, ValueError, message, plan=plan)


def test_another_number_of_axes_in_the_teacher(stream, plan):
    teacher = stream(5, 6).state_dict()
    teacher["embed.weight"] = teacher["embed.weight"][0]
    message = r"teacher tensor embed\.weight has shape \(3,\), but axes 'residual \.' in the plan"
    refused(teacher, stream(5, 6), first_importance, ValueError, message, plan=plan)


def test_an_axis_that_must_match():
    teacher = ViT(img_size=8, patch_size=2, dim=12, depth=1, heads=3)
    student = VisionMamba(img_size=8, patch_size=2, in_chans=1, dim=12, depth=1)
    message = r"patch_embed\.proj\.weight has 1 entries on an axis '\.', teacher tensor patch_embed\.proj\.weight has 3"
    refused(teacher, student, first_importance, ValueError, message)


def test_mismatched_heads():
    teacher = {"attn.proj.weight": torch.ones(6, 12)}
    student = nn.ModuleDict({"attn": nn.ModuleDict({"proj": nn.Linear(10, 6, bias=False)})})
    plan = {"attn.proj.weight": ("attn.proj.weight", "residual head*4")}
    message = r"student tensor attn\.proj\.weight has 10 entries on axis 'head\*4', which is not a multiple of head"
    refused(teacher, student, first_importance, ValueError, message, plan=plan)


def test_heads_of_unknown_size():
    teacher = {"attn.proj.weight": torch.ones(6, 12)}
    student = nn.ModuleDict({"attn": nn.ModuleDict({"proj": nn.Linear(8, 6, bias=False)})})
    plan = {"attn.proj.weight": ("attn.proj.weight", "residual head*head_dim")}
    message = r"8 entries on axis 'head\*head_dim'.* 12, and the shapes do not show .*bind\(plan, head_dim=64\)"
    refused(teacher, student, first_importance, ValueError, message, plan=plan)


def test_stacked_tensors_on_an_axis_of_one_block():
    teacher, student = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, nn.Linear(3, 4, bias=False)
    message = r"plan for weight: 2 teacher tensors \(a, b\) on axis 'hidden' of 1 blocks"
    refused(teacher, student, first_importance, ValueError, message, plan={"weight": ("a + b", "hidden residual")})


def test_scores_that_are_not_finite(stream, plan):
    teacher = stream(7, 6)
    scores = {name: torch.ones_like(p) for name, p in teacher.named_parameters()}
    scores["head.weight"][0, 2] = torch.nan
    refused(teacher, stream(5, 6), scores, ValueError, r"importance of head\.weight has 1 non-finite of 35", plan=plan)
    axis = {"residual": torch.full((7,), torch.inf)}
    refused(teacher, stream(5, 6), axis, ValueError, r"importance of residual has 7 non-finite of 7", plan=plan)


def test_scores_of_another_shape(stream, plan):
    teacher = stream(7, 6)
    message = r"importance of head\.weight has shape \(7, 5\), the tensor \(5, 7\)"
    refused(teacher, stream(5, 6), {"head.weight": torch.ones(7, 5)}, ValueError, message, plan=plan)
    message = r"importance of axis 'residual' has shape \(5,\): expected \(7,\)"
    refused(teacher, stream(5, 6), {"residual": torch.ones(5)}, ValueError, message, plan=plan)


def test_scores_of_unknown_names(stream, plan):
    message = r"importance names nohead\.weight \(1 in all\), which are neither teacher tensors nor axes"
    refused(stream(7, 6), stream(5, 6), {"nohead.weight": torch.ones(5)}, ValueError, message, plan=plan)


def test_an_axis_without_scores(stream, plan):
    scores = {"residual": torch.ones(7)}
    message = r"no importance for the axis 'hidden\.0', 'hidden\.1'"
    refused(stream(7, 6), stream(5, 3), scores, ValueError, message, plan=plan)


def test_a_student_on_the_meta_device(stream, plan):
    with pytest.raises(ValueError, match=r"student tensor embed\.weight is on the meta device: materialise first"):
        subclone(stream(5, 6), stream(5, 6).to("meta"), first_importance, plan=plan)


def test_a_teacher_on_the_meta_device(stream, plan):
    message = r"teacher tensor embed\.weight is on the meta device and has no values"
    refused(stream(5, 6).to("meta"), stream(5, 6), first_importance, ValueError, message, plan=plan)


def test_a_quantised_teacher(stream, plan):
    teacher = stream(5, 6).state_dict()
    for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn):
        teacher["embed.weight"] = torch.zeros(5, 3).to(dtype)
        message = rf"teacher tensor embed\.weight is quantised \({dtype}\)"
        refused(teacher, stream(5, 6), first_importance, TypeError, message, plan=plan)


def test_a_layer_map_that_is_unknown_or_out_of_range(stream, plan):
    teacher, student = stream(5, 6), stream(5, 6)
    message = r"layer map sends student layer 0 to teacher layer 2: expected 0 to 1"
    refused(teacher, student, first_importance, ValueError, message, plan=plan, layer_map={0: 2})
    message = r"drop_middle removes layers, but the student has 2 and the teacher 1"
    refused(stream(5, 6, 1), student, first_importance, ValueError, message, plan=plan, layer_map="drop_middle")


def test_a_misspelt_option_is_a_type_error(stream, plan):
    with pytest.raises(TypeError, match="layer_map"):
        subclone(stream(5, 6), stream(5, 6), first_importance, plan=plan, layer_map="late")
    with pytest.raises(TypeError, match="rescale"):
        subclone(stream(5, 6), stream(5, 6), magnitude_importance, plan=plan, rescale="linear")


def test_a_fine_tuned_teacher_of_another_shape():
    with pytest.raises(ValueError, match=r"w has shape \(2, 3\) before the fine-tuning and \(3, 2\) after"):
        stability_importance({"w": torch.ones(2, 3)}, {"w": torch.ones(3, 2)})
    with pytest.raises(ValueError, match=r"no floating tensor of before \(a, b, c\) is in after \(e, f, g\)"):
        stability_importance(dict.fromkeys("abcd", torch.ones(2)), dict.fromkeys("efgh", torch.ones(2)))


def test_a_fine_tuned_teacher_that_is_no_longer_floating():
    with pytest.raises(TypeError, match=r"w is torch\.float32 before the fine-tuning and torch\.bool after"):
        stability_importance({"w": torch.zeros(2)}, {"w": torch.zeros(2, dtype=torch.bool)})


def test_a_student_in_a_format_too_small_to_write():
    student = {"weight": torch.zeros(3, 2).to(torch.float8_e4m3fn)}
    with pytest.raises(TypeError, match=r"student tensor weight is torch\.float8_e4m3fn: expected float16"):
        subclone({"weight": torch.ones(3, 2)}, student, {}, plan={"weight": ("weight", "hidden residual")})


def test_a_complex_teacher_tensor_for_a_real_one():
    message = r"teacher tensor w is complex, student tensor w is torch\.float32: exclude the tensor, or give"
    teacher, student = {"w": torch.ones(3, 2, dtype=torch.cfloat)}, {"w": torch.zeros(3, 2)}
    with pytest.raises(TypeError, match=message):
        subclone(teacher, student, magnitude_importance, plan={"w": ("w", "hidden residual")})
    assert not student["w"].any()


def test_scores_that_are_complex():
    teacher, student = {"w": torch.ones(3, 2, dtype=torch.cfloat)}, {"w": torch.zeros(2, 2, dtype=torch.cfloat)}
    with pytest.raises(TypeError, match="importance of w is complex, and neurons are ranked: give its absolute value"):
        subclone(teacher, student, lambda name, w: w, plan={"w": ("w", "hidden residual")})


def test_a_plan_without_axes():
    message = "plan for scale: no axes; exclude scalars"
    with pytest.raises(ValueError, match=message):
        subclone({"scale": torch.tensor(1.0)}, {"scale": torch.tensor(0.0)}, {}, plan={"scale": ("scale", "")})
