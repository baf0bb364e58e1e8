"""Text and audio encoders of transformers: every one is translated by a family, or refused with its reason."""

import pytest
import torch

from tests.transfer.teachers.versions import complete
from transmamba.transfer.teachers import families, refused, translate
from transmamba.transfer.teachers.refused_encoders import REFUSED

transformers = pytest.importorskip("transformers")
auto = transformers.models.auto.modeling_auto
# language models and models of images, which other families and refusals cover
ELSEWHERE = {
    "emu3", "llama4", "mllama", "molmo2_text", "modernvbert", "ultravbert", "voxtral", "vibevoice_asr",
    "moss_transcribe_diarize",
}  # fmt: skip


def kinds_of_encoders():
    """List the model types to which transformers gives a task of encoders of text or of sound."""
    tables = ("MASKED_LM", "TEXT_ENCODING", "CTC", "AUDIO_CLASSIFICATION", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM")
    return sorted({kind for table in tables for kind in getattr(auto, f"MODEL_FOR_{table}_MAPPING_NAMES")} - ELSEWHERE)


@complete
def test_every_encoder_has_a_family_or_a_reason():
    known = {kind for family in families().values() for kind in family.model_types}
    kinds = kinds_of_encoders()
    assert len(kinds) > 70
    assert [kind for kind in kinds if (kind in known) == (kind in refused())] == []


def test_a_refusal_names_what_stands_in_the_way():
    for kind, reason in REFUSED.items():
        with pytest.raises(ValueError) as raised:
            translate({"embeddings.word_embeddings.weight": torch.zeros(61, 24)}, config={"model_type": kind})
        assert str(raised.value) == f"a teacher of type {kind!r} is refused: {reason}"


@complete
def test_refusals_are_types_of_transformers():
    assert set(REFUSED) <= set(transformers.CONFIG_MAPPING.keys())


SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 61}


@pytest.mark.parametrize("name", ["MPNet", "Deberta", "ConvBert", "Nystromformer", "FNet", "MobileBert", "SqueezeBert"])
def test_a_refused_model(name):
    facts = SIZES | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "embedding_size": 24}
    config = getattr(transformers, f"{name}Config")(**facts)
    teacher = getattr(transformers, f"{name}Model")(config)
    with pytest.raises(ValueError, match="is refused: "):
        translate(teacher)
    # names alone: nothing but BERT's own names is read as BERT
    with pytest.raises(ValueError):
        translate(teacher.state_dict())
