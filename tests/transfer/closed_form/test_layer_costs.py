from functools import partial

import pytest
import torch

from transmamba.models import MambaLM
from transmamba.nn import Attention, MambaMixer
from transmamba.transfer import Sensitivity, sensitivity

IDS = torch.arange(24).view(2, 12) % 11


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MambaLM(11, 8, depth=3, mixer=partial(Attention, heads=2, causal=True), tied=False)


def loss(model):
    assert not torch.is_grad_enabled() and not model.training
    return float(torch.nn.functional.cross_entropy(model(IDS)[:, :-1, :11].flatten(0, 1), IDS[:, 1:].flatten()))


def test_deletion_is_an_output_of_zero(model):
    found = sensitivity(model, loss, progress=False)
    assert model.training
    model.eval()
    with torch.no_grad():
        assert found.base == loss(model)
        for layer, block in enumerate(model.blocks):
            proj = block.mixer.proj
            kept = proj.weight.clone(), proj.bias.clone()
            proj.weight.zero_(), proj.bias.zero_()
            assert found.losses[layer] == pytest.approx(loss(model), abs=1e-6)
            proj.weight.copy_(kept[0]), proj.bias.copy_(kept[1])
        assert found.base == loss(model)
    assert found.costs == {layer: found.losses[layer] - found.base for layer in range(3)}


def test_another_mixer_is_called_instead(model):
    own = {layer: block.mixer for layer, block in enumerate(model.blocks)}
    assert sensitivity(model, loss, replace=own, progress=False).costs == {0: 0.0, 1: 0.0, 2: 0.0}
    other = MambaMixer(8).eval()
    found = sensitivity(model, loss, layers=[1], replace=lambda layer: other, progress=False)
    model.eval().blocks[1].mixer = other
    with torch.no_grad():
        assert found.losses == {1: loss(model)}


def test_the_choice():
    found = Sensitivity(1.0, {0: 3.0, 1: 1.5, 2: 1.1, 3: 1.5})
    assert (found.keep(1), found.keep(2), found.replace(2), found.replace(1)) == ([0], [0, 1], [2, 3], [2])
    assert found.keep(0) == [] and found.replace(4) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="cannot keep 5 of 4 measured layers"):
        found.keep(5)


def test_clear_errors(model):
    with pytest.raises(ValueError, match="layer 3 does not exist: expected 0 to 2"):
        sensitivity(model, loss, layers=[3])
    with pytest.raises(ValueError, match="layer -1 does not exist: expected 0 to 2"):
        sensitivity(model, loss, layers=[0, -1, 3])
    for number in ("nan", "inf", "-inf"):
        message = f"evaluate gave {number} for the model as it is: expected a finite number"
        with pytest.raises(ValueError, match=message):
            sensitivity(model, lambda model, number=number: float(number))
