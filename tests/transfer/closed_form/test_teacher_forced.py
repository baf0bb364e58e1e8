from functools import partial

import pytest
import torch

from transmamba.models import SNAKES, MambaLM, ViT, replace_mixers
from transmamba.nn import Attention, MambaMixer
from transmamba.transfer import fit_layers, fit_mixers, mixer_pairs, sensitivity

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


def test_a_teacher_with_the_orders_of_its_student_gives_them_to_the_mixers():
    vit, x = ViT(8, 4, dim=12, depth=2, heads=3).eval(), torch.randn(2, 3, 8, 8)
    scans = {"orders": SNAKES, "prefix_scan": "middle"}
    student = replace_mixers(vit, {1: partial(MambaMixer, directions=4)}, **scans).eval()
    ordered = replace_mixers(vit, {}, **scans)
    assert torch.equal(ordered(x), vit(x))
    (plain,), (pairs,) = mixer_pairs(vit, [x], [1]), mixer_pairs(ordered, [x], [1])
    with pytest.raises(ValueError, match="expected 4 scan orders"):
        plain[1].loss(student.blocks[1].mixer)
    # the first block is the teacher's, so that the student's own mixer reads the same
    given = []
    student.blocks[1].mixer.register_forward_hook(lambda _, inputs, output: given.append(output))
    student(x)
    ours, theirs = (y.detach().flatten(0, 1) for y in (given[0], pairs[1].outputs))
    wanted = (ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum()
    torch.testing.assert_close(pairs[1].loss(student.blocks[1].mixer).detach(), wanted)


@pytest.mark.parametrize("bias", [False, True])
def test_one_solved_mixer_is_what_fit_layers_gives(teacher, bias):
    teacher, build = teacher.double(), partial(MambaMixer, bias=bias)
    mask = torch.arange(12).expand(2, 12) < torch.tensor([[12], [9]])
    batches = [{"ids": (IDS + shift) % 11, "mask": mask} for shift in range(3)]
    hybrid = replace_mixers(teacher, {1: build}).double()
    mixers = {1: build(8).double(), 2: build(8).double().train()}
    mixers[1].load_state_dict(hybrid.blocks[1].mixer.state_dict())
    before = mixers[2].in_proj.weight.clone()
    # the target of fit_layers is a difference of two streams, which float32 would round
    options = {"ridge": 1e-2, "products": torch.float64}
    r2 = fit_mixers(teacher, mixers, batches, **options)
    (row,) = fit_layers(teacher, hybrid, batches, layers=[1], progress=False, **options).rows
    assert r2[1] == pytest.approx(row.r2, rel=1e-10) and set(r2) == {1, 2}
    torch.testing.assert_close(mixers[1].state_dict(), hybrid.blocks[1].mixer.state_dict(), rtol=1e-7, atol=1e-9)
    assert mixers[2].training and mixers[2].in_proj.weight.equal(before)


def test_solved_mixers_are_candidates_for_the_choice_of_layers(teacher):
    mixers = {layer: MambaMixer(8) for layer in range(3)}
    batches = [(IDS + shift) % 11 for shift in range(3)]
    fit_mixers(teacher, mixers, batches)
    with torch.no_grad():
        theirs = teacher.eval()(batches[0])
        deleted, solved = (
            sensitivity(
                teacher, lambda lm: float((lm(batches[0]) - theirs).square().mean()), replace=replace, progress=False
            )
            for replace in (None, mixers)
        )
    assert all(solved.losses[layer] < deleted.losses[layer] for layer in range(3))


def test_mixers_that_cannot_be_solved(teacher):
    with pytest.raises(ValueError, match="layer 3 does not exist: expected 0 to 2"):
        fit_mixers(teacher, {3: MambaMixer(8)}, [IDS])
    with pytest.raises(ValueError, match="24 tokens for 32 unknowns: fewer than 32 would be learnt by heart"):
        fit_mixers(teacher, {1: MambaMixer(8, expand=4)}, [IDS])
    with pytest.raises(ValueError, match="Narrow has no linear layer that could be solved"):
        fit_mixers(teacher, {1: Narrow()}, [IDS])
    with pytest.raises(ValueError, match="no batch to run the teacher on: give at least one"):
        fit_mixers(teacher, {1: MambaMixer(8)}, [])


def test_clear_errors(teacher):
    with pytest.raises(ValueError, match="layer 3 does not exist: expected 0 to 2"):
        mixer_pairs(teacher, [IDS], [3])
    (pairs,) = mixer_pairs(teacher, [IDS], [0])
    with pytest.raises(ValueError, match=r"the mixer gave \(2, 12, 4\), the teacher's \(2, 12, 8\)"):
        pairs[0].loss(Narrow())


class Narrow(torch.nn.Module):
    def forward(self, x, *context):
        return x[..., :4]
