"""The backbone of docs/adding_a_backbone.md is short and keeps the contract."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from tests.contracts import backbones, test_backbone
from transmamba.distill import BidirectionalDistill
from transmamba.testing import CHECKS

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_backbone.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def page(monkeypatch):
    """Run the code of the page and return its names; the line at its end makes its backbone join."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where torch.compile looks for the globals of its functions
    names = vars(module)
    (code,) = (code for code in BLOCKS if "class SpiralNet" in code)
    assert len(code.splitlines()) < 80
    exec(code, names)  # noqa: S102
    line = re.search(r'^    ("spiral": .*),$', PAGE.read_text(), re.MULTILINE)[1]
    joined = eval("{" + line + "}", {**vars(backbones), **names})
    monkeypatch.setitem(backbones.BACKBONES, "spiral", joined["spiral"])
    return names


def test_spiral_runs_along_the_rim_first(page):
    assert page["spiral"](3, 4) == [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]


@pytest.mark.parametrize(
    "promise",
    [
        test_backbone.test_shapes,
        test_backbone.test_features_are_the_stream_after_each_block,
        test_backbone.test_intermediates_select_like_timm,
        test_backbone.test_directions_add_up_to_the_output_of_the_mixer,
        test_backbone.test_the_gradient_of_a_batch_is_that_of_its_samples,
        test_backbone.test_runs_in_bfloat16,
        test_backbone.test_recomputed_blocks_give_the_same_gradients,
        test_backbone.test_a_model_from_the_meta_device_starts_like_any_other,
    ],
    ids=lambda promise: promise.__name__,
)
def test_keeps_the_contract(page, promise):
    promise("spiral")


@pytest.mark.parametrize("check", CHECKS)
def test_keeps_the_whole_contract_of_the_package(page, check):
    model, x = backbones.build("spiral")
    torch._dynamo.reset()
    CHECKS[check](model, x)


def test_a_mixer_of_ones_own_takes_25_lines():
    (code,) = (code for code in BLOCKS if "class S4DMixer" in code)
    own = code[code.index("class S4DMixer") : code.index("teacher = ")]
    assert len([line for line in own.splitlines() if line.strip()]) <= 25


def test_its_directions_can_be_distilled(page):
    model, x = backbones.build("spiral")
    features = model.forward_features(x, directions=True)
    inwards, outwards = features.directions
    loss = BidirectionalDistill()(inwards, outwards, model.forward_features(x).last.detach())
    loss.backward()
    assert loss.isfinite()
