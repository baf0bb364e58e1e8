"""Encoders of encoder-decoder models: the translated tensors in a plain Transformer give the teacher's stream."""

import pytest
import torch

from tests.transfer.teachers.encoders import PAD, task_models, worst_error
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
SIZES = {
    "d_model": 24, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 40,
    "decoder_attention_heads": 2, "decoder_ffn_dim": 12, "vocab_size": 61, "max_position_embeddings": 30,
    "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "forced_eos_token_id": 2,
}  # fmt: skip
FREQUENCIES = torch.exp(torch.arange(12) * -(torch.log(torch.tensor(10000.0)) / 11))
FAMILIES = {
    "Bart": "bart_encoder", "PLBart": "bart_encoder", "Mvp": "bart_encoder", "MBart": "mbart_encoder",
    "Pegasus": "pegasus_encoder", "Blenderbot": "pegasus_encoder", "Marian": "marian_encoder",
    "BlenderbotSmall": "blenderbot_small_encoder", "M2M100": "m2m_100_encoder",
    "FSMT": "fsmt_encoder",
}  # fmt: skip


def build(name, kind="Model", **options):
    """Build a tiny model of a family."""
    options |= {"langs": ["a", "b"], "src_vocab_size": 61, "tgt_vocab_size": 61} if name == "FSMT" else {}
    return getattr(transformers, f"{name}{kind}")(getattr(transformers, f"{name}Config")(**(SIZES | options)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scaled", [False, True])
def test_the_translated_encoder_is_the_teacher(name, scaled):
    teacher = build(name, scale_embedding=scaled, activation_function="relu" if scaled else "gelu")
    assert worst_error(teacher, base=teacher.encoder) < 1e-5
    translated = translate(teacher)
    assert translated.family == FAMILIES[name]
    assert translated.note("embedding.weight") == ("times 4.89898" if scaled else "")


@pytest.mark.parametrize("name", FAMILIES)
def test_models_with_heads_hold_the_same_encoder(name):
    for teacher in task_models(name, build(name).config):
        if "CausalLM" in type(teacher).__name__:
            with pytest.raises(ValueError, match="the tensors are those of a decoder alone"):
                translate(teacher)
        else:
            assert worst_error(teacher, base=teacher.get_encoder(), short=True) < 1e-5


@pytest.mark.parametrize("name", ["Bart", "Pegasus", "Marian", "M2M100"])
def test_an_encoder_alone(name):
    teacher = build(name).encoder
    assert worst_error(teacher) < 1e-5


def test_files_hold_a_shared_embedding_once():
    teacher = build("Bart")
    tensors = {name: tensor for name, tensor in teacher.state_dict().items() if "embed_tokens" not in name}
    for config in (teacher.config, teacher.config.to_dict()):
        translated = translate(tensors, config=config)
        assert torch.equal(translated["embedding.weight"], teacher.shared.weight)


def test_prompts_in_the_attention_are_left_over():
    teacher = build("Mvp")
    tensors = teacher.state_dict() | {"encoder.self_attn_prompt.prompt_embedding.weight": torch.zeros(3, 24)}
    with pytest.raises(ValueError, match="no place: encoder.self_attn_prompt"):
        translate(tensors, config=teacher.config)


def test_names_alone_cannot_tell_bart_from_blenderbot_small():
    tensors = build("Bart").state_dict()
    with pytest.raises(ValueError, match="'bart_encoder', 'blenderbot_small_encoder': say which"):
        translate(tensors)
    facts = translate(tensors, family="bart_encoder").architecture
    assert set(facts.unknown) == {"heads", "activation", "scale_embedding"}


def test_the_names_of_an_encoder_alone_are_those_of_decoders_too():
    with pytest.raises(ValueError, match="an encoder alone has the names of some decoders"):
        translate(build("Pegasus").encoder.state_dict(), family="pegasus_encoder")


def test_sines_need_the_configuration():
    with pytest.raises(ValueError, match="sines are computed for positions that the configuration counts"):
        translate(build("M2M100").state_dict(), family="m2m_100_encoder")
    positions = translate(build("M2M100"))["pos_embed"]
    assert positions.shape == (1, 30, 24) and torch.equal(positions[0, 0, :12], torch.sin(2 * FREQUENCIES))


def test_names_alone_cannot_tell_marian_from_fsmt():
    with pytest.raises(ValueError, match="'fsmt_encoder', 'marian_encoder': say which"):
        translate(build("Marian").state_dict())
