from functools import partial

import pytest
import torch

from transmamba.models import MambaLM, ViT
from transmamba.nn import Attention, MambaMixer
from transmamba.transfer import mixer_pairs

IDS = torch.arange(24).view(2, 12) % 11


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return MambaLM(11, 8, depth=3, mixer=partial(Attention, heads=2, causal=True), d_intermediate=4)


def test_pairs_are_what_the_mixers_read_and_gave(teacher):
    (pairs,) = mixer_pairs(teacher, [IDS], [2, 0])
    assert sorted(pairs) == [0, 2] and teacher.training
    stream = teacher.forward_features(IDS).layers
    torch.testing.assert_close(pairs[2].inputs, teacher.blocks[2].norm1(stream[1]))
    torch.testing.assert_close(pairs[2].outputs, teacher.blocks[2].mixer(pairs[2].inputs))
    assert not any(t.requires_grad for pair in pairs.values() for t in (pair.inputs, pair.outputs))
    assert len(next(mixer_pairs(teacher, [IDS]))) == 3


def test_the_teacher_runs_no_further_than_needed(teacher):
    ran = []
    for layer, block in enumerate(teacher.blocks):
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
    list(mixer_pairs(teacher, [IDS, {"ids": IDS}], [1]))
    assert ran == [0, 1, 0, 1]


def test_the_loss(teacher):
    mask = torch.arange(12).expand(2, 12) < 9
    (pairs,) = mixer_pairs(teacher, [{"ids": IDS, "mask": mask}], [1])
    pair = pairs[1]
    assert pair.loss(teacher.blocks[1].mixer.eval()).item() < 1e-10
    real = pair.outputs[mask]

    class Mean(torch.nn.Module):
        def forward(self, x, *context):
            return real.mean(0).expand_as(x)

    assert pair.loss(Mean()).item() == pytest.approx(1)
    mixer = MambaMixer(8)
    pair.loss(mixer).backward()
    wanted = (mixer(pair.inputs, mask=mask)[mask] - real).square().sum() / (real - real.mean(0)).square().sum()
    torch.testing.assert_close(pair.loss(mixer), wanted)
    assert all(p.grad is not None for p in mixer.parameters())


def test_images():
    vit = ViT(8, 4, dim=12, depth=2, heads=3)
    (pairs,) = mixer_pairs(vit, [torch.randn(2, 3, 8, 8)], [1])
    assert pairs[1].loss(MambaMixer(12, directions=2)).shape == ()


def test_clear_errors(teacher):
    with pytest.raises(ValueError, match="layer 3 does not exist: expected 0 to 2"):
        mixer_pairs(teacher, [IDS], [3])
    (pairs,) = mixer_pairs(teacher, [IDS], [0])
    with pytest.raises(ValueError, match=r"the mixer gave \(2, 12, 4\), the teacher's \(2, 12, 8\)"):
        pairs[0].loss(Narrow())


class Narrow(torch.nn.Module):
    def forward(self, x, *context):
        return x[..., :4]
