"""Tokens of teacher and student meet by their meaning, wherever the class tokens stand."""

import pytest
import torch

from transmamba.models import Vim, VisionMamba, ViT
from transmamba.transfer import LayerFit, fit_layers, project_start
from transmamba.transfer.closed_form.layouts import TokenMatch

IMAGE = {"img_size": 8, "patch_size": 2, "num_classes": 3}


class Placed(torch.nn.Module):
    """A model that is nothing but the places of its tokens."""

    def __init__(self, extra=None, grid=None):
        super().__init__()
        if extra is not None:
            self.extra_tokens = extra
        if grid is not None:
            self.grid = grid


def met(theirs, ours, count, grids=(None, None)):
    match = TokenMatch(Placed(theirs, grids[0]), Placed(ours, grids[1]))
    return match(torch.arange(count, dtype=torch.float)[None, :, None])[0, :, 0].tolist(), match.left_out


def test_patches_keep_their_order_and_a_class_token_meets_the_first():
    # a class token and four patches, numbered by the teacher's places
    assert met((0,), (0,), 5) == ([0, 1, 2, 3, 4], ())
    assert met((0,), (2,), 5) == ([1, 2, 0, 3, 4], ())
    assert met((0,), (4,), 5) == ([1, 2, 3, 4, 0], ())
    assert met((2,), (0,), 5) == ([2, 0, 1, 3, 4], ())
    # without class token, and with registers that the student lacks
    assert met((0,), (), 5) == ([1, 2, 3, 4], (0,))
    assert met((0, 1, 2), (2,), 7) == ([3, 4, 0, 5, 6], (1, 2))
    assert met((), (), 4) == ([0, 1, 2, 3], ())


def test_a_model_that_does_not_say_has_the_layout_of_the_other():
    assert met(None, (1,), 3) == ([0, 1, 2], ())
    assert met((0,), None, 3) == ([0, 1, 2], ())


def test_what_cannot_be_matched_is_refused():
    for theirs, ours in [((0,), (0, 5)), ((0, 1), (0, 5)), ((), (0,)), ((0,), (0, 1))]:
        with pytest.raises(ValueError, match=r"the student has class or register tokens at \(.*\), the teacher at"):
            TokenMatch(Placed(theirs), Placed(ours))
    with pytest.raises(ValueError, match=r"lie on a grid of \(1, 4\), the teacher's on \(2, 2\): they are as many"):
        met((0,), (0,), 5, grids=((2, 2), (1, 4)))
    # a model for other image sizes says only the grid of its table
    assert met((0,), (0,), 5, grids=((2, 2), (3, 4)))[0] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("class_tokens", ["first", "middle"])
def test_a_vim_is_fitted_to_the_teachers_own_tokens(class_tokens):
    """The targets of the first layer are the teacher's stream at the student's places, minus the student's."""
    torch.manual_seed(0)
    teacher = ViT(**IMAGE, dim=12, depth=2, heads=2).eval()
    student = Vim(**IMAGE, dim=12, depth=2, class_tokens=class_tokens).eval()
    x = torch.randn(2, 3, 8, 8)
    fit = LayerFit(teacher, student, [x], target="block")
    ((place, target),) = fit.pairs()
    theirs = teacher.forward_features(x).layers[0]
    middle = student.cls_position
    wanted = torch.cat([theirs[:, 1 : middle + 1], theirs[:, :1], theirs[:, middle + 1 :]], 1)
    torch.testing.assert_close(target, wanted - place.tokens)


class Pointwise(torch.nn.Module):
    """A mixer of one token at a time."""

    def __init__(self, dim):
        super().__init__()
        self.inner, self.out_proj, self.directions = torch.nn.Linear(dim, 40), torch.nn.Linear(40, dim), 1

    def forward(self, x, *context, **options):
        return self.out_proj(self.inner(x).relu())


@pytest.mark.parametrize("class_tokens", ["first", "middle"])
def test_a_readout_does_not_depend_on_the_place_of_the_class_token(class_tokens):
    """With mixers of one token at a time, Vim's system has the rows of the ViT's own, in another order."""
    torch.manual_seed(0)
    teacher = ViT(**IMAGE, dim=12, depth=2, heads=2).eval()
    for parameter in teacher.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    images = list(torch.randn(4, 8, 3, 8, 8).unbind())
    hybrid = ViT(**IMAGE, dim=12, depth=2, mixer=Pointwise).eval()
    hybrid.load_state_dict(teacher.state_dict(), strict=False)
    vim = Vim(**IMAGE, dim=12, depth=2, class_tokens=class_tokens, mixer=Pointwise, norm=torch.nn.LayerNorm).eval()
    project_start(teacher, vim, torch.eye(12))
    vim.blocks[0].mixer.load_state_dict(hybrid.blocks[0].mixer.state_dict())
    vim.blocks[0].norm1 = hybrid.blocks[0].norm1
    fit_layers(teacher, hybrid, images, layers=[0], target="block", progress=False)
    fit_layers(teacher, vim, images, layers=[0], progress=False)  # its block is a mixer alone: the same target
    for name, weight in vim.blocks[0].mixer.out_proj.named_parameters():
        torch.testing.assert_close(weight, hybrid.blocks[0].mixer.out_proj.get_parameter(name), atol=1e-4, rtol=1e-4)


def test_left_out_tokens_are_named_in_the_report():
    torch.manual_seed(0)
    teacher = ViT(**IMAGE, dim=12, depth=2, heads=2, registers=2).eval()
    images = list(torch.randn(4, 8, 3, 8, 8).unbind())
    report = fit_layers(teacher, VisionMamba(**IMAGE, dim=12, depth=2).eval(), images, progress=False)
    assert report.left_out == (0, 1, 2)
    assert str(report).endswith("left out: the teacher's tokens at 0, 1, 2, not in the student")
    by_hand = VisionMamba(**IMAGE, dim=12, depth=2).eval()
    report = fit_layers(teacher, by_hand, images, tokens=lambda x: x[:, 3:], progress=False)
    assert report.left_out == () and "left out" not in str(report)


def test_models_say_where_their_other_tokens_are():
    x = torch.zeros(1, 3, 8, 8)
    for model in (
        ViT(**IMAGE, dim=12, depth=1, registers=2),
        ViT(**IMAGE, dim=12, depth=1, class_token=False, pool="mean"),
        VisionMamba(**IMAGE, dim=12, depth=1),
        *(Vim(**IMAGE, dim=12, depth=1, class_tokens=place) for place in ("first", "middle", "both", "none")),
    ):
        assert model.extra_tokens == model.forward_features(x).extra
