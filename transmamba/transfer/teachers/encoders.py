"""Facts that configurations of text and audio encoders in transformers state alike."""

from collections.abc import Mapping
from typing import Any

from transmamba.transfer.teachers.architecture import Architecture, Placement
from transmamba.transfer.teachers.checkpoint import Checkpoint, Config
from transmamba.transfer.teachers.facts import read_activation

# the configuration classes' values for keys missing in a config.json: heads 12 and eps 1e-12 unless given here
HEADS = {
    "electra": 4, "rembert": 18, "bert-generation": 16, "xlm-roberta-xl": 32, "megatron-bert": 16, "albert": 64,
    "xlm": 16, "flaubert": 16, "prophetnet": 16, "jina_embeddings_v3": 16, "ultrabert": 32, "esmc": 40,
    "clip_text_model": 8, "metaclip_2_text_model": 8, "clipseg_text_model": 8, "owlvit_text_model": 8,
    "owlv2_text_model": 8, "xclip_text_model": 8, "groupvit_text_model": 4, "whisper": 6, "voxtral_encoder": 20,
    "moss_transcribe_diarize_audio": 16, "bart": 16, "mbart": 16, "mvp": 16, "pegasus": 16, "blenderbot": 32,
    "marian": 16, "blenderbot-small": 16, "m2m_100": 16, "fsmt": 16,
}  # fmt: skip
EPS = {"xlm-roberta-xl": 1e-5, "bridgetower_text_model": 1e-5, "jina_embeddings_v3": 1e-5}


def head_facts(config: Config, dim: int, *keys: str) -> dict[str, Any]:
    """Return the fields `heads` and `head_dim` of encoders whose heads share the width of the stream.

    Args:
        config: the teacher's configuration.
        dim: width of the stream.
        keys: names of the number of heads; "num_attention_heads" by default.
    """
    default = None if config.model_type is None else HEADS.get(config.model_type, 12)
    heads = config(*(keys or ("num_attention_heads",)), default=default, fact="heads")
    return {"heads": heads, "head_dim": None if heads is None else dim // heads}


def read_eps(config: Config, key: str = "layer_norm_eps", default: float = 1e-12) -> float:
    """Read the eps of all norms."""
    eps: float = config(key, default=EPS.get(config.model_type or "", default), fact="eps")
    return eps


def refuse_decoders(config: Mapping[str, Any], positions: tuple[str, ...] = ("absolute",)) -> None:
    """Raise ValueError for settings that turn an encoder's layers into something else.

    Args:
        config: values of the configuration.
        positions: values of `position_embedding_type` that the family has.
    """
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise ValueError(
            "the teacher is set up as a decoder (is_decoder, add_cross_attention): an encoder reads all tokens"
        )
    kind = config.get("position_embedding_type") or "absolute"
    if kind not in positions:
        raise ValueError(
            f"position_embedding_type={kind!r} adds positions to the attention scores, which no canonical encoder does"
        )
    if config.get("pruned_heads"):
        raise ValueError("some layers have fewer heads (pruned_heads): all layers of a canonical encoder are equal")


def encoder_facts(
    checkpoint: Checkpoint, depth: int, dim: int, placement: Placement = "post", activation: str = "gelu"
) -> Architecture:
    """Read the facts of BERT's configuration."""
    config = checkpoint.config
    refuse_decoders(config.values, ("absolute", "rotary") if config.model_type == "esm" else ("absolute",))
    return Architecture(
        "encoder",
        dim=dim,
        depth=depth,
        **head_facts(config, dim),
        eps=read_eps(config),
        placement=placement,
        activation=read_activation(config, default=activation),
    )
