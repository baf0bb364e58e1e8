"""GPT-2 and its kin: Conv1D, fused matrices, learned positions, scores scaled by layer or not at all."""

import pytest
import torch

from tests.transfer.teachers.decoders import build, prove, prove_older_config, refuse, without
from transmamba.transfer.teachers import translate

GPT = {**without(
    "head_dim", "num_key_value_heads", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings",
), "n_embd": 24, "n_layer": 4, "n_head": 4, "n_positions": 40}  # fmt: skip
NEO = {**without("head_dim", "num_key_value_heads", "num_hidden_layers", "num_attention_heads"), "num_heads": 4}
TEACHERS = {
    "gpt2": ("gpt2", {"n_inner": 17, "layer_norm_epsilon": 1e-2}, GPT),
    "gpt2 unscaled, untied": (
        "gpt2",
        {"scale_attn_weights": False, "activation_function": "relu", "tie_word_embeddings": False},
        GPT,
    ),
    "gpt2 scaled by layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        GPT,
    ),
    "gpt_bigcode": ("gpt_bigcode", {"layer_norm_epsilon": 1e-2}, GPT),
    "gpt_bigcode many keys": ("gpt_bigcode", {"multi_query": False, "scale_attn_weights": False}, GPT),
    "gpt_neo": (
        "gpt_neo",
        {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": 3},
        NEO,
    ),
    "gpt_neo global": (
        "gpt_neo",
        {"num_layers": 4, "attention_types": [[["global"], 4]], "activation_function": "gelu"},
        NEO,
    ),
    "gptj": ("gptj", {"rotary_dim": 4, "layer_norm_epsilon": 1e-2}, GPT),
    "gptj tied, whole heads": ("gptj", {"rotary_dim": 6, "tie_word_embeddings": True}, GPT),
    "codegen": ("codegen", {"rotary_dim": 4}, GPT),
    "openai-gpt": ("openai-gpt", {"layer_norm_epsilon": 1e-2}, GPT),
    "openai-gpt activation": ("openai-gpt", {"afn": "relu"}, GPT),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_the_translated_teacher_is_the_teacher(name):
    kind, facts, sizes = TEACHERS[name]
    teacher = build(kind, sizes, **facts)
    prove(teacher)
    prove_older_config(teacher, {**facts, **{key: value for key, value in sizes.items() if key.startswith("n")}})


@pytest.mark.parametrize("kind", ["gpt2", "gpt_bigcode"])
def test_cross_attention_is_refused(kind):
    refuse(kind, "add_cross_attention is refused", GPT, add_cross_attention=True, **_single(kind))


def _single(kind):
    return {"multi_query": False} if kind == "gpt_bigcode" else {}


def test_a_rotary_dim_of_null_is_refused():
    teacher = build("gptj", GPT, rotary_dim=4)
    with pytest.raises(ValueError, match="rotary_dim is null"):
        translate(teacher.state_dict(), config={**teacher.config.to_dict(), "rotary_dim": None})


def test_buffers_of_older_versions_are_ignored_by_name():
    teacher = build("gpt2", GPT)
    weights = dict(teacher.state_dict())
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 40, 40)
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    translated = translate(weights, config=teacher.config)
    assert translated.ignored["transformer.h.0.attn.bias"] == "buffer of the causal mask"
    prove(teacher, translated)


def test_the_bare_tensors_of_gpt2_are_recognised():
    teacher = build("gpt2", GPT)
    weights = {name.removeprefix("transformer."): tensor for name, tensor in teacher.state_dict().items()}
    del weights["lm_head.weight"]
    translated = translate(weights)
    assert translated.family == "gpt2"
    assert {"heads", "activation", "eps"} <= set(translated.architecture.unknown)
    assert torch.equal(translated["head.weight"], teacher.lm_head.weight)
