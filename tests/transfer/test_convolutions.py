import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transmamba.models import PlainMamba, VisionMamba
from transmamba.transfer import init_convolutions
from transmamba.transfer.convolutions import identity_convolution


def vision_mamba(dim=12):
    return VisionMamba(img_size=8, patch_size=2, dim=dim, depth=2)


def test_identity_passes_the_current_token():
    student = vision_mamba()
    init_convolutions(student, "identity")
    convolution = student.blocks[1].mixer.branches[1].conv1d
    u = torch.randn(2, 24, 7)
    assert torch.equal(convolution(F.pad(u, (3, 0))), u)


def test_identity_of_a_map_keeps_its_centre():
    student = PlainMamba(img_size=64, patch_size=16, dim=12, depth=2)
    names = init_convolutions(student, "identity")
    assert names == [f"blocks.{i}.mixer.conv2d.{leaf}" for i in range(2) for leaf in ("weight", "bias")]
    weight = student.blocks[0].mixer.conv2d.weight
    u = torch.randn(2, 24, 5, 6)
    assert torch.equal(F.conv2d(u, weight, padding=3, groups=24), u)


def test_identity_of_a_large_kernel_keeps_its_centre():
    weight = identity_convolution(torch.empty(24, 1, 5, 7))
    assert weight.nonzero()[:, 2:].unique(dim=0).tolist() == [[2, 3]] and weight.sum() == 24


def test_normal_has_the_spread_asked_for_and_other_tensors_stay():
    student = vision_mamba(96)
    before = {name: p.clone() for name, p in student.named_parameters()}
    written = init_convolutions(student, "normal", std=0.5)
    weights = torch.cat([p.flatten() for name, p in student.named_parameters() if "conv1d.weight" in name])
    assert abs(weights.std().item() - 0.5) < 0.03
    changed = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(written)


def test_a_student_without_convolutions_or_memory_is_refused():
    with pytest.raises(ValueError, match="no tensor named conv1d or conv2d: nothing to initialise"):
        init_convolutions(nn.Linear(2, 2), "normal")
    with pytest.raises(ValueError, match=r"conv1d\.weight is on the meta device"):
        init_convolutions(vision_mamba().to("meta"), "normal")
    with pytest.raises(ValueError, match="std must be finite and not negative, got nan"):
        init_convolutions(vision_mamba(), "normal", std=float("nan"))
