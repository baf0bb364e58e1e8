"""Backbones under torch.compile."""

import copy

import pytest
import torch

from tests.contracts.backbones import BACKBONES, SHORT_AND_WHOLE

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
