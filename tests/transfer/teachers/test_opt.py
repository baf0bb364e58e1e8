"""OPT and others with fairseq's names: positions that start at row 2, or that no tensor stores."""

import pytest
import torch

from tests.transfer.teachers.decoders import build, prove, prove_older_config, refuse, without
from transmamba.transfer.teachers import translate
from transmamba.transfer.teachers.opt import sines

OPT = {**without("head_dim", "num_key_value_heads", "intermediate_size"), "ffn_dim": 40}
BIO = without("head_dim", "num_key_value_heads")
XGLM = {
    "d_model": 24, "num_layers": 4, "attention_heads": 4, "ffn_dim": 40, "vocab_size": 61,
    "max_position_embeddings": 40, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TEACHERS = {
    "opt": ("opt", {}, OPT),
    "opt post-norm, projected": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 10}, OPT),
    "opt without biases and gains": (
        "opt",
        {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
        OPT,
    ),
    "opt projected, untied, no last norm": (
        "opt",
        {"word_embed_proj_dim": 10, "tie_word_embeddings": False, "_remove_final_layer_norm": True},
        OPT,
    ),
    "biogpt": ("biogpt", {}, BIO),
    "biogpt unscaled, untied": (
        "biogpt",
        {"scale_embedding": False, "tie_word_embeddings": False, "hidden_act": "relu"},
        BIO,
    ),
    "xglm": ("xglm", {"pad_token_id": 1}, XGLM),
    "xglm padding": ("xglm", {"pad_token_id": 7}, XGLM),
    "xglm unscaled": ("xglm", {"scale_embedding": False, "activation_function": "relu"}, XGLM),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_the_translated_teacher_is_the_teacher(name):
    kind, facts, sizes = TEACHERS[name]
    teacher = build(kind, sizes, **facts)
    prove(teacher)
    prove_older_config(teacher, facts | sizes)


def test_cross_attention_is_refused():
    refuse("xglm", "add_cross_attention is refused", XGLM, add_cross_attention=True)


def test_a_pre_norm_opt_without_its_last_norm_is_refused():
    teacher = build("opt", OPT)
    weights = {name: x for name, x in teacher.state_dict().items() if ".decoder.final_layer_norm" not in name}
    with pytest.raises(ValueError, match="opt: the teacher lacks final_layer_norm.weight"):
        translate(weights, config=teacher.config)


@pytest.mark.parametrize("dim", [8, 9])
def test_computed_positions_are_those_of_the_teacher(dim):
    # the row of a padding token is zero: LayerNorm would hide any other constant from the logits
    modeling = pytest.importorskip("transformers.models.xglm.modeling_xglm")
    wanted = modeling.XGLMSinusoidalPositionalEmbedding.get_embedding(12, dim, 7)
    torch.testing.assert_close(sines(12, dim, 7), wanted)
    torch.testing.assert_close(sines(7, dim, 7), wanted[:7])


def test_positions_start_at_row_two():
    teacher = build("opt", OPT)
    stored = teacher.model.decoder.embed_positions.weight
    assert torch.equal(translate(teacher)["pos_embed"][0], stored[2:])
