"""Whatever stands in padding, NaN and infinity included, reaches neither a loss nor a gradient."""

import inspect
from functools import partial

import pytest
import torch

from transmamba import distill

HEAD = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True] * 5, [True, True, False, True, False], [False] * 5])
SIMILARITIES = ("token", "flatten", "pooled")


def pair(loss, student, teacher):
    return loss(student, teacher, MASK)


def layers(loss, student, teacher):
    return loss([student, 2 * student], teacher, MASK)


def every_layer(loss, student, teacher):
    return loss([student, 2 * student], [teacher, 1 + teacher], MASK)


def hidden_states(loss, student, teacher):
    return loss(student, HEAD, teacher, HEAD, MASK)


def stored_logits(loss, student, teacher):
    stored = distill.top_logits(teacher.masked_fill(~MASK[..., None], 0.0), HEAD, 3)
    return loss(student, HEAD, stored, MASK)


def directions(loss, student, teacher):
    backward = student.flip(1) if loss.distill.order == "scan" else student
    return loss([student], [2 * backward], teacher, MASK)


def named_directions(loss, student, teacher):
    return loss({"forward": [student], "backward": [2 * student.flip(1)]}, teacher, MASK)


CASES = {
    **{f"adaptive {s}": (layers, partial(distill.AdaptiveLayerDistill, similarity=s)) for s in SIMILARITIES},
    "bidirectional scan": (directions, partial(distill.BidirectionalDistill, order="scan")),
    "bidirectional raster": (directions, partial(distill.BidirectionalDistill, order="raster")),
    "multidirectional": (named_directions, distill.MultiDirectionalDistill),
    **{f"last {c}": (pair, partial(distill.LastFeatureDistill, c)) for c in ("cosine", "mse")},
    **{f"layerwise {c}": (every_layer, partial(distill.LayerwiseDistill, c)) for c in ("cosine", "mse")},
    **{
        f"logits {d} {chunk}": (pair, partial(distill.LogitsDistill, 2.0, d, chunk=chunk))
        for d in ("forward", "reverse", "js")
        for chunk in (None, 4)
    },
    "token relations": (layers, partial(distill.TokenRelationDistill, chunk=2)),
    "hidden states": (hidden_states, partial(distill.HiddenLogitsDistill, 2.0, chunk=4)),
    "stored logits": (stored_logits, partial(distill.SparseLogitsDistill, 2.0, chunk=4)),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("case", CASES)
def test_padding_reaches_neither_loss_nor_gradient(case, value):
    call, build = CASES[case]
    clean = torch.randn(2, 3, 5, 7).masked_fill(~MASK[None, ..., None], 0.0)
    expected, grad = _run(call, build(), *clean)
    got, grad_filled = _run(call, build(), *clean.masked_fill(~MASK[None, ..., None], value))
    torch.testing.assert_close((got, grad_filled), (expected, grad), rtol=0, atol=0)
    assert expected > 0 and grad[MASK].abs().sum() > 0 and not grad_filled[~MASK].any()


def _run(call, loss, student, teacher):
    student.requires_grad_()
    value = call(loss, student, teacher)
    return value.detach(), torch.autograd.grad(value, student)[0]


def test_every_loss_with_a_mask_is_tried():
    tried = {build.func if isinstance(build, partial) else build for _, build in CASES.values()}
    losses = [getattr(distill, name) for name in dir(distill)]
    losses = [x for x in losses if inspect.isclass(x) and issubclass(x, torch.nn.Module)]
    assert {x for x in losses if "mask" in inspect.signature(x.forward).parameters} == tried
