"""LLaMA and its kin: the translated tensors in a plain Transformer give the teacher's logits."""

import pytest

from tests.transfer.teachers.decoders import SIZES, build, prove, prove_older_config, refuse, without

DERIVED = without("head_dim")
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50.0, "original_max_position_embeddings": 10}
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "rope_theta": 50.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
ALTERNATING = ["sliding_attention", "full_attention"] * 2
MULTIPLIERS = {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.4}
TWO_ROPES = {
    "full_attention": {**YARN, "attention_factor": 1.3},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}

TEACHERS = {
    "llama": ("llama", {}),
    "llama biases, eps, tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-2, "tie_word_embeddings": True},
    ),
    "llama activation, one head width": ("llama", {"hidden_act": "gelu", "head_dim": 6, "pretraining_tp": 2}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 90.0}}),
    "llama llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama yarn by mscale": (
        "llama",
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False, "beta_fast": 8.0}},
    ),
    "llama yarn by factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.7}}),
    "seed_oss": ("seed_oss", {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True}),
    "internlm3": ("internlm3", {"attention_bias": True, "mlp_bias": True}),
    "exaone": ("exaone", {"rms_norm_eps": 1e-2}),
    "iquestcoder": ("iquestcoder", {}),
    "mistral window": ("mistral", {"sliding_window": 4}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral by default": ("mistral", {"sliding_window": 4096}),
    "ministral": ("ministral", {"sliding_window": 4}),
    "ministral layers": ("ministral", {"sliding_window": 4, "layer_types": ALTERNATING}),
    "qwen2": ("qwen2", {}, DERIVED),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}, DERIVED),
    "qwen2 window unused": ("qwen2", {"sliding_window": 4, "max_window_layers": 0}, DERIVED),
    "qwen3": ("qwen3", {"attention_bias": True, "rms_norm_eps": 1e-2}),
    "qwen3 window": ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "smollm3": ("smollm3", {}, DERIVED),
    "smollm3 window": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 3, "no_rope_layer_interval": 2},
        DERIVED,
    ),
    "smollm3 layers": (
        "smollm3",
        {"no_rope_layers": [1, 0, 0, 1], "mlp_bias": True, "attention_bias": True, "tie_word_embeddings": False},
        DERIVED,
    ),
    "granite": (
        "granite",
        {**MULTIPLIERS, "logits_scaling": 5.0, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        DERIVED,
    ),
    "hyperclovax": ("hyperclovax", {**MULTIPLIERS, "logits_scaling": 5.0, "attention_bias": True}),
    "hyperclovax without norms": (
        "hyperclovax",
        {"residual_multiplier": 0.4, "logits_scaling": 5.0, "use_post_norm": False, "mlp_bias": True},
    ),
    "cwm": ("cwm", {"sliding_window": 3}),
    "helium": ("helium", {"head_dim": 6}),
    "ernie4_5": ("ernie4_5", {"use_bias": True}),
    "arcee": ("arcee", {"mlp_bias": True, "attention_bias": True}),
    "phi3": ("phi3", {}, DERIVED),
    "phi3 window, partial": (
        "phi3",
        {"sliding_window": 3, "partial_rotary_factor": 0.5, "hidden_size": 32, "rms_norm_eps": 1e-2},
        DERIVED,
    ),
    "glm": ("glm", {"attention_bias": True}),
    "glm4": ("glm4", {"attention_bias": True, "rms_norm_eps": 1e-2}),
    "exaone4": ("exaone4", {"sliding_window": 3, "rms_norm_eps": 1e-2}, DERIVED),
    "exaone4 without windows": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}, DERIVED),
    "olmo2": ("olmo2", {"rms_norm_eps": 1e-2, "attention_bias": True}, DERIVED),
    "olmo3": ("olmo3", {"sliding_window": 3}, DERIVED),
    "olmo3 yarn": ("olmo3", {"sliding_window": 3, "rope_parameters": TWO_ROPES}, DERIVED),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_the_translated_teacher_is_the_teacher(name):
    kind, facts, sizes = (*TEACHERS[name], SIZES)[:3]
    teacher = build(kind, sizes, **facts)
    prove(teacher)
    prove_older_config(teacher, facts)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_change_with_the_length_are_refused(kind):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 50.0, **(factors if kind == "longrope" else {})}
    refuse("llama", f"'{kind}' are refused: it changes the frequencies with the length", rope_parameters=rope)
