"""Gemma: stored gains minus one, scaled embeddings, norms on both sides, softcaps, windows."""

import pytest
import torch

from tests.transfer.teachers.canonical import Canonical, error
from tests.transfer.teachers.decoders import IDS, build, prove, prove_older_config, refuse
from transmamba.transfer.teachers import translate

SCALED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 300.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
TEACHERS = {
    "gemma": ("gemma", {}),
    "gemma untied, eps": ("gemma", {"rms_norm_eps": 1e-2, "tie_word_embeddings": False, "attention_bias": True}),
    "gemma activation": ("gemma", {"hidden_act": "silu"}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 3, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma2 without softcaps": (
        "gemma2",
        {
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "hidden_activation": "gelu",
            "attention_bias": True, "sliding_window": 3, "layer_types": ALTERNATING[::-1],
        },
    ),
    "vaultgemma": ("vaultgemma", {"sliding_window": 3, "query_pre_attn_scalar": 10, "rms_norm_eps": 1e-2}),
    "gemma3": ("gemma3_text", {"sliding_window": 3, "sliding_window_pattern": 2, "query_pre_attn_scalar": 10}),
    "gemma3 scaled": (
        "gemma3_text",
        {
            "sliding_window": 3, "final_logit_softcapping": 3.0, "rope_parameters": SCALED, "layer_types": ALTERNATING,
            "hidden_activation": "gelu", "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEACHERS)
def test_the_translated_teacher_is_the_teacher(name):
    kind, facts = TEACHERS[name]
    teacher = build(kind, **facts)
    prove(teacher)
    prove_older_config(teacher, facts)


def test_an_older_configuration_may_leave_out_the_base_of_layers_with_a_window():
    teacher = build("gemma3_text", layer_types=ALTERNATING)
    config = {key: value for key, value in teacher.config.to_dict().items() if key != "rope_parameters"}
    ropes = translate(teacher.state_dict(), config=config | {"rope_theta": 700.0}).architecture.ropes
    assert [rope["rope_theta"] for rope in ropes] == [1e4, 700.0, 1e4, 700.0]


def test_gelu_means_its_tanh_approximation_in_the_first_gemma():
    teacher = build("gemma", hidden_act="gelu")
    older = translate(teacher.state_dict(), config={**teacher.config.to_dict(), "hidden_act": "gelu"})
    assert older.architecture.activation == "gelu_tanh"
    prove(teacher, older)


def test_a_tied_head_is_the_stored_table_and_the_embedding_is_scaled():
    translated = translate(build("gemma"))
    assert torch.allclose(translated["embedding.weight"], translated["head.weight"] * 24**0.5)
    assert translated.note("head.weight") == ""


def test_an_embedding_gemma_is_an_encoder():
    facts = {"use_bidirectional_attention": True, "sliding_window": 6, "layer_types": ALTERNATING}
    teacher = build("gemma3_text", auto="AutoModel", **facts)
    translated = translate(teacher)
    assert translated.architecture.kind == "encoder"
    with torch.no_grad():
        assert error(Canonical(translated).text(IDS), teacher(IDS).last_hidden_state) < 1e-5


def test_both_directions_are_refused_before_the_third_gemma():
    refuse("gemma2", "use_bidirectional_attention is refused: before Gemma 3", use_bidirectional_attention=True)
