"""Whisper's encoder: the translated tensors in a plain Transformer give the teacher's stream."""

import pytest
import torch

from tests.transfer.teachers.canonical import Canonical, error, perturb
from transmamba.transfer.teachers import translate

transformers = pytest.importorskip("transformers")
MEL = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(0))
SIZES = {
    "d_model": 24, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 40,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 12, "vocab_size": 61, "num_mel_bins": 8,
    "max_source_positions": 12, "max_target_positions": 9, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip


def build(kind="Model", **options):
    """Build a tiny Whisper with every parameter moved."""
    return perturb(getattr(transformers, f"Whisper{kind}")(transformers.WhisperConfig(**(SIZES | options))))


def encode(teacher, mel=MEL):
    """Compute the stream of the translated encoder."""
    return Canonical(translate(teacher)).audio(mel)


@pytest.mark.parametrize("kind", ["Model", "ForConditionalGeneration", "ForAudioClassification"])
def test_the_translated_encoder_is_the_teacher(kind):
    options = {"use_weighted_layer_sum": True} if kind == "ForAudioClassification" else {}
    teacher = build(kind, **options)
    encoder = teacher.encoder if kind == "ForAudioClassification" else teacher.get_encoder()
    with torch.no_grad():
        wanted = encoder(MEL).last_hidden_state
    assert error(encode(teacher), wanted) < 1e-5
    assert error(encode(encoder), wanted) < 1e-5
    translated = translate(teacher)
    assert translated.architecture.kind == "audio" and "blocks.0.attn.k.bias" not in translated


def test_another_activation():
    teacher = build(activation_function="relu")
    with torch.no_grad():
        assert error(encode(teacher), teacher.encoder(MEL).last_hidden_state) < 1e-5


def test_the_tensors_of_the_decoder_are_ignored_by_name():
    ignored = translate(build("ForConditionalGeneration")).ignored
    assert ignored["model.decoder.layer_norm.weight"] == "decoder"
    assert all("decoder" in name or name == "proj_out.weight" for name in ignored)


def test_names_alone_leave_heads_unknown():
    translated = translate(build().state_dict())
    assert translated.family == "whisper" and set(translated.architecture.unknown) == {"heads", "activation"}


def test_a_decoder_alone_is_refused():
    with pytest.raises(ValueError, match="has no tensor encoder.conv1.weight"):
        translate(build("ForCausalLM"))


def test_the_names_of_an_encoder_alone_are_those_of_others_too():
    with pytest.raises(ValueError, match="an encoder alone has the names of others' encoders: give config="):
        translate(build().encoder.state_dict(), family="whisper")
    with pytest.raises(ValueError, match="no family fits"):
        translate(build().encoder.state_dict())


def test_moss_holds_whispers_encoder():
    kind = transformers.models.moss_transcribe_diarize.modeling_moss_transcribe_diarize.MossTranscribeDiarizeAudioModel
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    teacher = perturb(kind(kind.config_class(**sizes, num_mel_bins=8, max_source_positions=12)))
    with torch.no_grad():
        assert error(encode(teacher), teacher(MEL).last_hidden_state) < 1e-5


def test_voxtral_holds_whispers_encoder():
    audio = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
             "num_mel_bins": 8, "max_source_positions": 12}  # fmt: skip
    text = {"model_type": "llama", "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 40, "vocab_size": 50}  # fmt: skip
    config = transformers.VoxtralConfig(audio_config=audio, text_config=text)
    teacher = perturb(transformers.VoxtralForConditionalGeneration(config))
    encoder = teacher.get_encoder(modality="audio")
    with torch.no_grad():
        wanted = encoder(MEL).last_hidden_state
    assert error(encode(encoder), wanted) < 1e-5
    assert error(Canonical(translate(teacher, kind="audio")).audio(MEL), wanted) < 1e-5
