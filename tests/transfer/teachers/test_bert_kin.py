"""Encoders near to BERT: the translated tensors in a plain Transformer give the teacher's stream."""

import pytest
import torch

from tests.transfer.teachers.encoders import IDS, PAD, SIZES, task_models, worst_error
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
TYPES = (IDS > 20).long()
XLM = {
    "vocab_size": 61, "emb_dim": 24, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 30, "layer_norm_eps": 1e-2,
    "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2, "mask_token_id": 60, "pad_index": PAD,
}  # fmt: skip
ESM = SIZES | {"mask_token_id": 59}


def build(name, kind="Model", sizes=SIZES, **options):
    """Build a tiny model of a family."""
    return getattr(transformers, f"{name}{kind}")(getattr(transformers, f"{name}Config")(**(sizes | options)))


EXACT = {
    "esm": ({}, ()),
    "esm normed": ({"emb_layer_norm_before": True}, ()),
    "esm rotary": ({"position_embedding_type": "rotary", "rope_theta": 300.0}, ()),
    "esm token dropout": ({"position_embedding_type": "rotary", "token_dropout": True}, ("inputs with mask tokens",)),
}


@pytest.mark.parametrize("name", EXACT)
def test_esm(name):
    options, differs = EXACT[name]
    teacher = build("Esm", sizes=ESM, **options)
    assert worst_error(teacher) < 1e-5
    assert len(translate(teacher).differs) == len(differs)


def test_esm_by_names_alone_has_the_positions_that_are_stored():
    for kind, ropes in (("absolute", 0), ("rotary", 3)):
        facts = translate(build("Esm", sizes=ESM, position_embedding_type=kind).state_dict()).architecture
        assert len(facts.ropes) == ropes and {"ropes", "token_dropout", "heads"} < set(facts.unknown)


def test_ibert_out_of_quant_mode():
    assert worst_error(build("IBert", type_vocab_size=2), TYPES) < 1e-5
    with pytest.raises(ValueError, match="computes in integers"):
        translate(build("IBert", quant_mode=True))


def test_big_bird_with_full_attention():
    for options in ({}, {"rescale_embeddings": True, "use_bias": False, "hidden_act": "relu"}):
        assert worst_error(build("BigBird", attention_type="original_full", **options), TYPES) < 1e-5
    with pytest.raises(ValueError, match="its attention is sparse"):
        translate(build("BigBird"))


def test_roformer():
    for options in ({}, {"embedding_size": 16, "hidden_act": "relu"}):
        teacher = build("RoFormer", **options)
        table = teacher.encoder.embed_positions
        sines = table.create_weight()
        assert worst_error(teacher, TYPES, keep=((table.weight, sines),)) < 1e-5


def test_roformer_is_refused_where_it_is_not_plain_rotation():
    with pytest.raises(ValueError, match="values are turned as well"):
        translate(build("RoFormer", rotary_value=True))
    teacher = build("RoFormer")
    with pytest.raises(ValueError, match="rotary pairs lie within heads"):
        translate(teacher.state_dict(), family="roformer")
    with torch.no_grad():
        teacher.encoder.embed_positions.weight[3] += 0.1
    with pytest.raises(ValueError, match="does not hold the sines and cosines"):
        translate(teacher)


@pytest.mark.parametrize("name", ["XLM", "Flaubert"])
def test_xlm(name):
    assert worst_error(build(name, sizes=XLM)) < 1e-5
    teacher = build(name, sizes=XLM, gelu_activation=False, n_langs=3)
    assert worst_error(teacher) < 1e-5
    assert translate(teacher).differs == ("languages (langs), whose embedding is added where they are given",)
    with pytest.raises(ValueError, match="expected a plain encoder"):
        translate(build(name, sizes=XLM, causal=True))


@pytest.mark.parametrize("name", ["Esm", "RoFormer", "IBert", "BigBird", "XLM", "Flaubert"])
def test_models_with_heads_hold_the_same_encoder(name):
    sizes = {"Esm": ESM, "XLM": XLM, "Flaubert": XLM}.get(name, SIZES)
    options = {"attention_type": "original_full"} if name == "BigBird" else {}
    for teacher in task_models(name, build(name, sizes=sizes, **options).config):
        base = teacher.base_model
        keep = ()
        if name == "RoFormer":
            table = base.encoder.embed_positions
            keep = ((table.weight, table.create_weight()),)
        assert worst_error(teacher, base=base, short=True, keep=keep) < 1e-5, type(teacher).__name__


def test_prophetnet():
    sizes = {"hidden_size": 24, "num_encoder_layers": 2, "num_decoder_layers": 1, "num_encoder_attention_heads": 4,
             "num_decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 12, "vocab_size": 61,
             "max_position_embeddings": 30, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}  # fmt: skip
    config = transformers.ProphetNetConfig(**sizes)
    teacher = transformers.ProphetNetModel(config)
    assert worst_error(teacher, base=teacher.encoder) < 1e-5
    assert worst_error(teacher.encoder) < 1e-5
    teacher = transformers.ProphetNetForConditionalGeneration(config)
    assert worst_error(teacher, base=teacher.get_encoder(), short=True) < 1e-5
