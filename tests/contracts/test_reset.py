"""Everything of `nn` and `models` that has `reset_parameters` draws all it owns, also after the meta device."""

import ast
import copy
from pathlib import Path

import pytest
from torch import nn

from tests.hardening.examples import EXAMPLES, Sizes
from transmamba.models.stack import reset_children

# the vision encoder of a VisionLanguageMamba is there to be loaded
TORCH = ("import torch", "from torch")
LOADED = {"models.VisionLanguageMamba": "vision."}


def built(name):
    """Return the module of an example, and None if it is something else or a part that another model draws."""
    call = EXAMPLES[name](Sizes(0))
    if not isinstance(call.function, type) or not issubclass(call.function, nn.Module):
        return None
    module = call.function(**call.arguments)
    if name.startswith("nn."):
        return Holder(module)
    return module if hasattr(module, "reset_parameters") else None


class Holder(nn.Sequential):
    def reset_parameters(self):
        reset_children(self)


NAMES = [name for name in EXAMPLES if name.startswith(("nn.", "models.")) and built(name) is not None]


def test_the_models_are_among_them():
    backbones = {"VisionMamba", "Vim", "ViT", "PlainMamba", "VideoMamba", "MambaLM", "MambaEncoder"}
    others = {"TransformerEncoder", "AudioEncoder", "VideoTextMamba", "VisionLanguageMamba"}
    assert {f"models.{name}" for name in backbones | others} <= set(NAMES)


def test_the_backbone_of_notebook_06_too():
    path = Path(__file__).parents[2] / "notebooks" / "06_your_own_ssm.py"
    wanted = {"spiral", "leaky_average", "LeakyMixer", "SpiralNet"}
    parts = [
        node for node in ast.parse(path.read_text()).body
        if getattr(node, "name", None) in wanted or ast.unparse(node).startswith(("from trans", "import trans", *TORCH))
    ]  # fmt: skip
    names = {"__name__": "notebook"}
    exec(compile(ast.Module(parts, []), str(path), "exec"), names)
    model = names["SpiralNet"](12, 2).to("meta").to_empty(device="cpu")
    model.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stays_empty(name):
    model = copy.deepcopy(built(name)).to("meta").to_empty(device="cpu")  # filled with NaN by tests/conftest.py
    loaded = LOADED.get(name, "nothing")
    assert all(p.isnan().all() for p in model.parameters())
    model.reset_parameters()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(loaded)}
    assert [key for key, value in state.items() if not value.isfinite().all()] == []
