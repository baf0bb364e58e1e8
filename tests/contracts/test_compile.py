"""Backbones under torch.compile."""

import copy

import pytest
import torch

from tests.contracts.backbones import BACKBONES, SHORT_AND_WHOLE
from transmamba.models import PlainMamba, Vim, VisionMamba, ViT

every_backbone = pytest.mark.parametrize("name", BACKBONES)


@every_backbone
@pytest.mark.parametrize("made", SHORT_AND_WHOLE)
def test_compiles_in_one_graph_with_its_backward(name, made):
    model, x = made(name)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), model(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for got, wanted in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


@pytest.mark.parametrize("build", [PlainMamba, Vim, VisionMamba, ViT], ids=lambda build: build.__name__)
def test_models_of_two_sizes_compile_one_after_the_other(build):
    """After the first size, the compiler takes every number that has changed for one that varies."""
    torch._dynamo.reset()
    for side in (8, 16):
        model, x = build(side, 4, dim=12, depth=1, num_classes=3), torch.randn(2, 3, side, side)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))
