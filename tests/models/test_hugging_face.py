"""Checkpoints written by `transformers`, read here."""

import json

import pytest
import torch
import transformers

from transmamba.models import MambaLM, from_hf
from transmamba.nn import MambaMixer

SMALL = {"vocab_size": 23, "hidden_size": 8, "state_size": 5, "num_hidden_layers": 2, "conv_kernel": 3}


def wider(config):
    """Set an inner width that is not a multiple of the outer one."""
    config.intermediate_size = 13
    return config


MODELS = {
    "mamba": lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**SMALL, layer_norm_epsilon=1e-3)),
    "mamba, biased": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(**SMALL, use_bias=True, use_conv_bias=False, tie_word_embeddings=False)
    ),
    "mamba, of another inner width": lambda: transformers.MambaForCausalLM(wider(transformers.MambaConfig(**SMALL))),
    "falcon": lambda: transformers.FalconMambaForCausalLM(transformers.FalconMambaConfig(**SMALL, mixer_rms_eps=1e-2)),
    "falcon, of another inner width": lambda: transformers.FalconMambaForCausalLM(
        wider(transformers.FalconMambaConfig(**SMALL))
    ),
    "mamba2": lambda: transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(**SMALL, num_heads=4, head_dim=4, n_groups=2, chunk_size=4)
    ),
    "mamba2, tied": lambda: transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            **SMALL, num_heads=4, head_dim=4, n_groups=1, tie_word_embeddings=True, time_step_limit=(0.1, 0.7)
        )
    ),
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 2, 8, 1]])


def written(kind, folder):
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_logits_and_hidden_states_are_those_of_transformers(kind, tmp_path):
    model = written(kind, tmp_path)
    expected, ours = model(IDS, output_hidden_states=True), from_hf(tmp_path)
    torch.testing.assert_close(ours(IDS), expected.logits, rtol=1e-4, atol=2e-5)
    features = ours.forward_features(IDS)
    torch.testing.assert_close((*features.layers, features.last), expected.hidden_states, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "kind", [kind for kind in MODELS if kind != "mamba2, tied"]
)  # transformers steps without limits
def test_the_text_goes_on_as_in_transformers(kind, tmp_path):
    model = written(kind, tmp_path)
    expected = model.generate(IDS, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(from_hf(tmp_path).generate(IDS, 9), expected)


def test_a_config_and_a_state_dict_do_as_well_and_shards_are_put_together(tmp_path):
    model = written("mamba", tmp_path)
    loaded = from_hf(model.config.to_dict(), model.state_dict())
    model.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for other in (from_hf(tmp_path), from_hf(tmp_path / "shards")):
        assert all(torch.equal(x, y) for x, y in zip(loaded.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["falcon", "mamba2, tied"])
def test_it_can_be_saved_here_and_come_back(kind, tmp_path):
    written(kind, tmp_path / "theirs")
    model = from_hf(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    assert torch.equal(MambaLM.from_pretrained(tmp_path / "ours")(IDS), model(IDS))


def test_a_config_alone_makes_a_new_model():
    model = from_hf(MODELS["mamba"]().config.to_dict())
    assert isinstance(model.blocks[0].mixer, MambaMixer) and model(IDS).isfinite().all()
    assert model.norm.eps == 1e-3


def test_the_intermediate_size_counts_where_expand_disagrees(tmp_path):
    model = written("falcon", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"expand": 16, "intermediate_size": 16}
    assert torch.equal(from_hf(config, model.state_dict())(IDS), from_hf(tmp_path)(IDS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type must be one of mamba, falcon_mamba, mamba2, got 'bert'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
    ],
)
def test_other_models_are_refused(change, message):
    model = MODELS["mamba"]()
    state = {name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(ValueError, match=message):
        from_hf(model.config.to_dict() | change, state)


def test_an_inner_width_is_a_whole_number_of_channels():
    config = {**SMALL, "model_type": "mamba"}
    for width in (1, 7, 12, 3 * 2**20 + 1):
        model = from_hf(config | {"hidden_size": 3, "intermediate_size": width, "num_hidden_layers": 1})
        assert model.blocks[0].mixer.out_proj.in_features == width
    with pytest.raises(TypeError, match="intermediate_size must be a whole number, got 12.5"):
        from_hf(config | {"intermediate_size": 12.5})
    with pytest.raises(ValueError, match="intermediate_size must be at least 1, got 0"):
        from_hf(config | {"intermediate_size": 0})
