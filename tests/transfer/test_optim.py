import pytest
import torch
from torch import nn

from transmamba.models import MambaLM, VisionMamba, ViT
from transmamba.transfer import freeze, magnitude_importance, param_groups, subclone


@pytest.fixture
def student():
    return VisionMamba(img_size=8, patch_size=2, dim=12, depth=2, num_classes=5)


def names_by_group(student, groups):
    names = {id(p): name for name, p in student.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


def test_every_parameter_is_in_the_group_of_its_origin_and_kind(student):
    teacher = ViT(img_size=8, patch_size=2, dim=12, depth=2, heads=3, num_classes=5)
    report = subclone(teacher, student, magnitude_importance)
    groups = param_groups(student, report.inherited, lr=1e-3, inherited_lr=1e-4, weight_decay=0.1)
    named = names_by_group(student, groups)
    assert set().union(*named.values()) == {name for name, _ in student.named_parameters()}
    assert named["inherited"] | named["inherited_no_decay"] == report.inherited
    assert {"pos_embed", "blocks.0.norm1.weight", "head.bias"} <= named["inherited_no_decay"]
    ssm = "blocks.1.mixer.branches.0.ssm."
    assert {ssm + "A_log", ssm + "D", ssm + "dt_bias"} <= named["new_no_decay"]
    assert {ssm + "x_proj.weight", "blocks.0.mixer.in_proj.weight"} <= named["new"]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1e-4, 0.1), (1e-4, 0.0), (1e-3, 0.1), (1e-3, 0.0)]


def test_the_groups_are_an_optimisers(student):
    torch.optim.AdamW(param_groups(student, [], lr=1e-3))


def test_the_models_own_list_does_not_decay():
    class Model(nn.Linear):
        def no_weight_decay(self):
            return {"weight"}

    (group,) = param_groups(Model(3, 2), [], lr=1e-3)
    assert (group["name"], group["weight_decay"]) == ("new_no_decay", 0.0)


def test_the_models_own_list_may_hold_patterns():
    class Model(nn.Sequential):
        def no_weight_decay(self):
            return {"*.weight", "1.bias"}

    groups = names_by_group(model := Model(nn.Linear(3, 2), nn.Linear(2, 2)), param_groups(model, [], lr=1e-3))
    assert groups == {"new_no_decay": {"0.weight", "0.bias", "1.weight", "1.bias"}}


def test_a_pattern_that_spares_nothing_is_refused_unless_it_is_spared_anyhow():
    class Model(nn.Linear):
        def no_weight_decay(self):
            return {"dist_token", "*.log_decay"}

    message = r"no_weight_decay\(\) of Model names '\*\.log_decay', which matches no parameter: expected whole names or"
    with pytest.raises(ValueError, match=message):
        param_groups(Model(3, 2), [], lr=1e-3)
    Model.no_weight_decay = lambda self: {"dist_token"}  # as models of timm do
    assert [group["name"] for group in param_groups(Model(3, 2), [], lr=1e-3)] == ["new", "new_no_decay"]


def test_tied_parameters_are_in_one_group():
    lm = MambaLM(11, 8, depth=1)
    groups = param_groups(lm, ["head.weight", "embedding.weight"], lr=1e-3)
    assert sum(len(group["params"]) for group in groups) == len(list(lm.parameters()))


def test_frozen_parameters_are_in_no_group_and_thaw(student):
    """phi-mamba 3."""
    freeze(student, ["head.weight", "pos_embed"])
    named = names_by_group(student, param_groups(student, [], lr=1e-3))
    assert not {"head.weight", "pos_embed"} & set().union(*named.values())
    freeze(student, ["head.weight"], frozen=False)
    assert student.head.weight.requires_grad
    assert not student.pos_embed.requires_grad


def test_unknown_names_are_refused(student):
    with pytest.raises(ValueError, match=r"the student has no parameter haed\.weight: expected names such as blocks"):
        param_groups(student, ["haed.weight"], lr=1e-3)
    with pytest.raises(ValueError, match=r"the student has no parameter haed\.weight"):
        freeze(student, ["haed.weight"])
    with pytest.raises(ValueError, match=r"the student has no parameter a, b, c, d, e: expected names such as blocks"):
        freeze(student, ["f", "e", "d", "c", "b", "a"])
