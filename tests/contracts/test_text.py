"""The promises of text models, checked on each."""

import copy
import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch

from transmamba import models
from transmamba.models import Backbone, MambaEncoder, MambaLM, TransformerEncoder, recompute_blocks
from transmamba.nn import Attention, Mamba2Mixer, Mamba3Mixer, MambaMixer, TransformerBlock

SNAPSHOT = Path(__file__).parent / "text_keys.json"
MODELS = {
    "mamba": lambda: MambaLM(11, 6, depth=2, mixer=partial(MambaMixer, d_state=3), d_intermediate=5),
    "mamba2": lambda: MambaLM(11, 6, depth=2, mixer=partial(Mamba2Mixer, d_state=3, head_dim=4), tied=False),
    "mamba3": lambda: MambaLM(11, 6, depth=2, mixer=partial(Mamba3Mixer, d_state=4, head_dim=4)),
    "encoder": lambda: MambaEncoder(11, 6, depth=2, max_length=7, types=2, d_state=3),
    "attention": lambda: MambaLM(
        11, 6, depth=2, mixer=partial(Attention, heads=3, causal=True), max_length=7, norm="layer", tied=False,
        block=partial(TransformerBlock, hidden_dim=5), head_bias=True,
    ),
    "mixture": lambda: MambaLM(
        11, 6, depth=2, logit_softcap=3.0, block=partial(TransformerBlock, norm="rms", hidden_dim=5, gated=True),
        mixer=[partial(MambaMixer, d_state=3), partial(Attention, heads=3, causal=True, rope={"rope_theta": 9.0})],
    ),
    "transformer": lambda: TransformerEncoder(
        11, 6, depth=2, heads=3, max_length=7, types=2, embedding_dim=4, final_norm=True
    ),
}  # fmt: skip
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 10, 8, 0, 7]])
every_model = pytest.mark.parametrize("name", MODELS)


def gradients(model):
    model.zero_grad()
    model(IDS).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@every_model
def test_gradients_reach_every_parameter(name):
    model = MODELS[name]()
    with torch.no_grad():
        model.norm.weight.normal_()  # the squares of a normed token always add up to the same
    silent = [key for key, grad in gradients(model).items() if not grad.any()]
    assert silent == []


@every_model
def test_recomputed_blocks_give_the_same_gradients(name):
    model = MODELS[name]()
    expected = gradients(model)
    recompute_blocks(model)
    torch.testing.assert_close(gradients(model), expected)


@every_model
def test_copies_and_pickles_are_the_same(name):
    model = MODELS[name]()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IDS), model(IDS))


@pytest.mark.parametrize("build", [lambda: MambaLM(11, 6, depth=2), MODELS["encoder"]])
def test_comes_back_from_its_folder(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(IDS), model(IDS)) and again.build_config == model.build_config


def test_published_sizes_know_how_they_were_built():
    with torch.device("meta"):
        model = models.mamba2_130m(vocab_size=30)
        again = getattr(models, model.build_config["build"])(**model.build_config["arguments"])
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (model, again)]
    assert shapes[0] == shapes[1] and len(again.embedding.weight) == 32


@every_model
def test_exports(name):
    model = MODELS[name]()
    program = torch.export.export(model, (IDS,))
    torch.testing.assert_close(program.module()(IDS), model(IDS))


@every_model
def test_starts_anew_after_the_meta_device(name):
    with torch.device("meta"):
        model = MODELS[name]()
    model.to_empty(device="cpu").reset_parameters()
    assert model(IDS).isfinite().all()
    fresh = {key: value.std(correction=0) for key, value in MODELS[name]().state_dict().items()}
    for key, value in model.state_dict().items():
        assert (value.std(correction=0) > 0) == (fresh[key] > 0), key


@every_model
def test_the_head_makes_of_the_features_what_forward_gives(name):
    model = MODELS[name]().eval()
    ids = torch.randint(11, (2, 5))
    features = model.forward_features(ids)
    torch.testing.assert_close(model.forward_head(features), model(ids))
    torch.testing.assert_close(model.forward_head(features.last, pre_logits=True), features.last)
    assert model.feature_info[-1] == {"num_chs": 6, "reduction": 1, "module": "blocks.1"}
    with pytest.raises(ValueError, match="a map needs a grid of rows and columns"):
        model.forward_intermediates(ids, output_fmt="NCHW")


@every_model
def test_intermediates_select_like_timm(name):
    model = MODELS[name]()
    assert isinstance(model, Backbone)
    last, every = model.forward_intermediates(IDS)
    features = model.forward_features(IDS)
    torch.testing.assert_close((last, *every), (features.last, *features.layers))
    torch.testing.assert_close(model.forward_intermediates(IDS, 1)[1], every[-1:])
    with pytest.raises(ValueError, match="layer 2 does not exist"):
        model.forward_intermediates(IDS, [2])


@every_model
def test_parameters_spared_from_weight_decay_exist(name):
    model = MODELS[name]()
    names, spared = {key for key, _ in model.named_parameters()}, model.no_weight_decay()
    assert spared and spared <= names
    assert {key for key in names if key.endswith(("A_log", ".D", "dt_bias", "pos_embed"))} == spared


def test_names_and_shapes_stay():
    assert state_keys() == json.loads(SNAPSHOT.read_text())


def state_keys():
    return {
        name: {key: list(value.shape) for key, value in build().state_dict().items()} for name, build in MODELS.items()
    }


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(state_keys(), indent=1) + "\n")
