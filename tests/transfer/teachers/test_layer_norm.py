"""Decoders with LayerNorm: fused matrices, parallel branches, partial and interleaved rotary positions."""

import pytest
import torch

from tests.transfer.teachers.decoders import SIZES, build, prove, prove_older_config, refuse, without
from transmamba.transfer.teachers import translate

GROUPED = {**without("head_dim"), "hidden_size": 32}
PLAIN = {**without("head_dim", "num_key_value_heads"), "hidden_size": 32}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
QUARTER = {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.25}

TEACHERS = {
    "gpt_neox": ("gpt_neox", {}, PLAIN),
    "gpt_neox eps, rotary": ("gpt_neox", {"layer_norm_eps": 1e-2, "rope_parameters": QUARTER}, PLAIN),
    "gpt_neox sequential": (
        "gpt_neox",
        {
            "use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new",
            "tie_word_embeddings": True, "rotary_pct": 1.0,
        },
        PLAIN,
    ),
    "persimmon": ("persimmon", {}, PLAIN),
    "persimmon without norms": ("persimmon", {"qk_layernorm": False, "hidden_act": "gelu"}, PLAIN),
    "phi": ("phi", {}, GROUPED),
    "phi norms, tied": ("phi", {"qk_layernorm": True, "layer_norm_eps": 1e-2, "tie_word_embeddings": True}, GROUPED),
    "starcoder2": ("starcoder2", {"sliding_window": 3, "norm_epsilon": 1e-2}, GROUPED),
    "starcoder2 without biases": ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}, GROUPED),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "rope_parameters": QUARTER}, GROUPED),
    "stablelm parallel": ("stablelm", {"use_parallel_residual": True, "layer_norm_eps": 1e-2}, GROUPED),
    "nemotron": ("nemotron", {}),
    "nemotron biases, eps": ("nemotron", {"attention_bias": True, "mlp_bias": True, "norm_eps": 1e-2}),
    "jais2": ("jais2", {"layer_norm_eps": 1e-2}),
    "jais2 without biases": ("jais2", {"attention_bias": False, "mlp_bias": False}),
    "cohere": ("cohere", {"logit_scale": 0.3, "attention_bias": True}, GROUPED),
    "cohere untied": ("cohere", {"tie_word_embeddings": False, "layer_norm_eps": 1e-2}, GROUPED),
    "cohere2": ("cohere2", {"sliding_window": 3, "layer_norm_eps": 1e-2}, GROUPED),
    "cohere2 layers": ("cohere2", {"sliding_window": 3, "layer_types": ALTERNATING}, GROUPED),
    "olmo": ("olmo", {"attention_bias": True}, GROUPED),
    "falcon 7b": ("falcon", {}, PLAIN),
    "falcon heads, biases": ("falcon", {"multi_query": False, "bias": True, "layer_norm_epsilon": 1e-2}, PLAIN),
    "falcon sequential": (
        "falcon",
        {"multi_query": False, "parallel_attn": False, "tie_word_embeddings": False, "activation": "relu"},
        PLAIN,
    ),
    "falcon 40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}, PLAIN),
    "falcon 11b": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        PLAIN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEACHERS)
def test_the_translated_teacher_is_the_teacher(name):
    kind, facts, sizes = (*TEACHERS[name], SIZES)[:3]
    teacher = build(kind, sizes, **facts)
    prove(teacher)
    prove_older_config(teacher, facts)


@pytest.mark.parametrize(
    ("kind", "facts", "sizes", "message"),
    [
        ("stablelm", {"qk_layernorm": True}, GROUPED, "qk_layernorm is refused: every head has a norm of its own"),
        ("cohere", {"use_qk_norm": True}, GROUPED, "use_qk_norm is refused: every head has a norm of its own"),
        ("olmo", {"clip_qkv": 1.0}, GROUPED, "clip_qkv is refused"),
        ("falcon", {"alibi": True}, PLAIN, "alibi is refused: positions are added to the scores"),
    ],
)
def test_what_no_canonical_block_has_is_refused(kind, facts, sizes, message):
    refuse(kind, message, sizes, **facts)


def test_the_older_name_of_the_head_of_gpt_neox():
    teacher = build("gpt_neox", PLAIN)
    names = {"lm_head.weight": "embed_out.weight"}
    weights = {names.get(name, name): tensor for name, tensor in teacher.state_dict().items()}
    weights["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 40, 40)
    weights["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    weights["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    prove(teacher, translate(weights, config=teacher.config))


def test_rows_of_fused_heads_need_the_configuration():
    with pytest.raises(ValueError, match="depends on the number of heads: give the configuration"):
        translate(build("gpt_neox", PLAIN).state_dict(), family="gpt_neox")
