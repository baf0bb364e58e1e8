import copy

import pytest
import torch
from torch import nn

from transmamba.distill import FrozenTeacher, tap
from transmamba.models import ViT


@pytest.fixture
def student():
    model = nn.Sequential(nn.Linear(3, 2))
    model.teacher = FrozenTeacher(nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.9)))
    return model


def test_is_no_part_of_the_module_that_holds_it(student):
    assert set(student.state_dict()) == {"0.weight", "0.bias"} and len(list(student.parameters())) == 2
    student.train()
    x = torch.randn(4, 3)
    assert torch.equal(student.teacher(x), student.teacher.model[0](x))  # no dropout


def test_has_no_gradient_and_takes_none(student):
    x = torch.randn(4, 3, requires_grad=True)
    y = student.teacher(x)
    assert not y.requires_grad and not any(p.requires_grad for p in student.teacher.model.parameters())


def test_goes_where_its_input_is(student):
    y = student.teacher(torch.empty(4, 3, device="meta"))
    assert y.device.type == "meta" and student.teacher.model[0].weight.is_meta
    assert student[0].weight.device.type == "cpu"


def test_without_tensors_on_either_side_nothing_moves():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.ones(2))

        def forward(self, count):
            return self.value * count

    assert FrozenTeacher(Constant())(3).tolist() == [3, 3]
    assert FrozenTeacher(nn.Identity())(torch.ones(2, device="meta")).is_meta


def test_a_copy_of_the_module_shares_it(student):
    again = copy.deepcopy(student)
    assert again.teacher is student.teacher and again[0] is not student[0]
    averaged = torch.optim.swa_utils.AveragedModel(student)
    assert averaged.module.teacher is student.teacher


def test_runs_another_method_and_lets_hooks_run():
    model, x = ViT(8, 4, dim=12, depth=2, heads=3, num_classes=5), torch.randn(2, 3, 8, 8)
    features = FrozenTeacher(model, "forward_features")
    torch.testing.assert_close(features(x).last, model.forward_features(x).last)
    whole = FrozenTeacher(model)
    with tap(model, "blocks.*", frozen=True) as tapped:
        whole(x=x)
    torch.testing.assert_close(tapped.layers, list(features(x).layers))
    assert repr(features).startswith("FrozenTeacher(ViT, ") and repr(features).endswith("method='forward_features')")


def test_a_method_that_is_not_there():
    with pytest.raises(AttributeError, match="forward_feature"):
        FrozenTeacher(nn.Linear(3, 2), "forward_feature")


def test_training_mode_is_refused(student):
    student.teacher.model.train()
    with pytest.raises(RuntimeError, match=r"the teacher is in training mode: call teacher\.model\.eval\(\)"):
        student.teacher(torch.randn(4, 3))
