"""Encoders from files: a config.json without defaults, and the names that save_pretrained writes."""

import importlib

import pytest
import torch

from tests.transfer.teachers.versions import need
from transmamba.transfer import open_safetensors
from transmamba.transfer.teachers import families, translate

transformers = pytest.importorskip("transformers")
FILES = ("bert", "bert_kin", "rotary_encoders", "text_towers", "whisper", "seq2seq")
KINDS = sorted(
    kind
    for name in FILES
    for family in importlib.import_module(f"transmamba.transfer.teachers.{name}").FAMILIES
    for kind in family.model_types
)
# sizes under all their names, small enough to build: two channels a head
WIDTHS = ("hidden_size", "d_model", "dim", "emb_dim", "embedding_size", "input_embedding_size")
ONES = ("num_hidden_layers", "n_layers", "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers")
SMALL = ("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "projection_dim", "projection_size")
HEADS = ("num_attention_heads", "encoder_attention_heads", "num_encoder_attention_heads", "n_heads")


def small_facts(full):
    """Return the full configuration with small sizes, and the keys that were changed."""
    heads = next(full[key] for key in HEADS if full.get(key) is not None)
    changed = dict.fromkeys(WIDTHS, 2 * heads) | dict.fromkeys(ONES, 1) | dict.fromkeys(SMALL, 6)
    changed |= {"vocab_size": 70, "max_position_embeddings": 9, "max_source_positions": 9, "num_mel_bins": 2}
    changed |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "layer_types": ["full_attention"]}
    changed |= {"head_dim": 2, "num_key_value_heads": heads, "sliding_window": 4}
    changed |= {"src_vocab_size": 70, "tgt_vocab_size": 70}
    # sparse by default, which is refused
    changed |= {"attention_type": "original_full"}
    return {key: value for key, value in changed.items() if key in full}


def model_class(config):
    """Return the base model of a configuration class."""
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    found = [
        value for name, value in vars(module).items()
        if isinstance(value, type) and getattr(value, "config_class", None) is type(config)
        and name.endswith(("Model", "Encoder", "TextTransformer")) and "rained" not in name
    ]  # fmt: skip
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_the_configuration_class(kind):
    need(kind)
    config_class = transformers.CONFIG_MAPPING[kind]
    facts = small_facts(config_class().to_dict())
    config = config_class(**facts)
    tensors = model_class(config)(config).state_dict()
    silent = {"model_type": kind, **facts}
    wanted, got = translate(tensors, config=config), translate(tensors, config=silent)
    assert got.family in families() and got.architecture == wanted.architecture
    assert all(wanted.note(name) == got.note(name) for name in wanted) and not got.architecture.unknown


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_the_same_teacher(kind, tmp_path):
    need(kind)
    config_class = transformers.CONFIG_MAPPING[kind]
    config = config_class(**small_facts(config_class().to_dict()))
    teacher = model_class(config)(config)
    teacher.save_pretrained(tmp_path)
    wanted, got = translate(teacher), translate(open_safetensors(tmp_path))
    assert got.architecture == wanted.architecture and set(got) == set(wanted)
    assert all(torch.equal(got[name], wanted[name]) and got.shape(name) == wanted.shape(name) for name in wanted)


def test_a_configuration_of_other_code_is_refused():
    config = transformers.NomicBertConfig(**small_facts(transformers.NomicBertConfig().to_dict()))
    tensors = transformers.NomicBertModel(config).state_dict()
    with pytest.raises(ValueError, match="that of nomic-ai's own code"):
        translate(tensors, config={"model_type": "nomic_bert", "n_embd": 24, "n_head": 12})
