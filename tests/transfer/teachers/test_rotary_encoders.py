"""Encoders with rotary positions: the translated tensors in a plain Transformer give the teacher's stream."""

import pytest
import torch

from tests.transfer.teachers.encoders import IDS, SIZES, task_models, worst_error
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
TYPES = (IDS > 20).long()
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}
NAMES = ("ModernBert", "NomicBert", "Gte", "JinaEmbeddingsV3", "EuroBert", "Ultrabert", "Esmc")
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "original_max_position_embeddings": 8}


def build(name, kind="Model", **options):
    """Build a model of a family with the sizes of these tests and some facts changed."""
    config = getattr(transformers, f"{name}Config")(**(SIZES | {"norm_eps": 1e-2, "rms_norm_eps": 1e-2} | options))
    return getattr(transformers, f"{name}{kind}")(config)


BIASED = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
TYPED = {
    "nomic": ("NomicBert", {}),
    "nomic wide heads": ("NomicBert", {"head_dim": 8, "hidden_act": "gelu"}),
    "nomic yarn": ("NomicBert", {"rope_parameters": YARN}),
    "gte": ("Gte", {"type_vocab_size": 2}),
    "jina": ("JinaEmbeddingsV3", {"type_vocab_size": 2, "rope_parameters": LINEAR}),
}
PLAIN = {
    "modernbert": ("ModernBert", {"num_hidden_layers": 4, "local_attention": 4}),
    "modernbert biased": ("ModernBert", BIASED | {"local_attention": 7, "hidden_activation": "gelu_pytorch_tanh"}),
    "modernbert one kind": ("ModernBert", {"layer_types": ["sliding_attention"] * 3, "local_attention": 2}),
    "gte without types": ("Gte", {"type_vocab_size": 0}),
    "eurobert": ("EuroBert", {"num_key_value_heads": 2}),
    "eurobert biased": ("EuroBert", BIASED | {"head_dim": 8}),
    "ultrabert": ("Ultrabert", {"sliding_window": 2, "num_key_value_heads": 2}),
    "esmc": ("Esmc", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
def test_the_translated_encoder_is_the_teacher(name):
    family, options = TYPED[name]
    assert worst_error(build(family, **options), TYPES) < 1e-5


@pytest.mark.parametrize("name", PLAIN)
def test_the_translated_encoder_without_token_types_is_the_teacher(name):
    family, options = PLAIN[name]
    assert worst_error(build(family, **options)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_models_with_heads_hold_the_same_encoder(name):
    models = task_models(name, getattr(transformers, f"{name}Config")(**(SIZES | {"num_hidden_layers": 1})))
    assert len(models) >= 2
    for teacher in models:
        assert worst_error(teacher, base=teacher.base_model, short=True) < 1e-5, type(teacher).__name__


def test_modernbert_of_version_4_states_bases_and_layers_otherwise():
    teacher = build("ModernBert", global_attn_every_n_layers=2, local_rope_theta=300.0, global_rope_theta=7000.0)
    config = {
        key: value for key, value in teacher.config.to_dict().items() if key not in ("layer_types", "rope_parameters")
    }
    older = config | {"global_attn_every_n_layers": 2, "local_rope_theta": 300.0, "global_rope_theta": 7000.0}
    facts = translate(teacher.state_dict(), config=older).architecture
    assert facts == translate(teacher).architecture
    assert [rope["rope_theta"] for rope in facts.ropes] == [7000.0, 300.0, 7000.0]
    assert facts.windows == (None, 65, None)


@pytest.mark.parametrize("name", ["ModernBert", "Ultrabert"])
def test_kinds_of_layers_that_a_file_leaves_out_are_those_of_the_configuration_class(name):
    teacher = build(name, num_hidden_layers=7)
    config = teacher.config.to_dict()
    for key in ("layer_types", "rope_parameters", "global_attn_every_n_layers", "local_attention", "sliding_window"):
        config.pop(key, None)
    facts = translate(teacher.state_dict(), config=config).architecture
    assert facts == translate(teacher).architecture
    assert 1 < facts.windows.count(None) < 5


def test_modernbert_by_names_alone_leaves_positions_unknown():
    facts = translate(build("ModernBert").state_dict()).architecture
    assert set(facts.unknown) == {"heads", "eps", "activation", "ropes", "windows"}


@pytest.mark.parametrize("name", NAMES)
def test_part_of_a_head_is_refused(name):
    teacher = build(name)
    half = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    kinds = {"full_attention": half, "sliding_attention": half}
    by_kind = set(kinds) <= set(teacher.config.rope_parameters)
    config = teacher.config.to_dict() | {"rope_parameters": kinds if by_kind else half}
    with pytest.raises(ValueError, match="models of this type rotate whole heads"):
        translate(teacher.state_dict(), config=config)


def test_frequencies_that_follow_the_length_are_refused():
    config = build("EuroBert").config.to_dict() | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    with pytest.raises(ValueError, match="rotary positions of type 'dynamic' are refused"):
        translate(build("EuroBert").state_dict(), config=config)


def test_an_adapter_is_to_be_merged():
    tensors = build("JinaEmbeddingsV3").state_dict()
    tensors["layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 24)
    with pytest.raises(ValueError, match="an adapter that is not merged"):
        translate(tensors, family="jina_v3")
