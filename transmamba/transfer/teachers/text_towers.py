"""Text encoders of models that also read images: CLIP, SigLIP, FLAVA and their kin."""

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.bert import HEADS, Norms, bert_layers, embedding_terms
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.encoders import encoder_facts, head_facts, read_eps
from transmamba.transfer.teachers.facts import read_activation
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine
from transmamba.transfer.teachers.terms import Terms, affine, src

LAYER = "encoder.layers.{i}."
NAMES = {f"attn.{letter}": f"self_attn.{letter}_proj" for letter in "qkv"}
NAMES |= {"attn.out": "self_attn.out_proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
NAMES |= {"norm1": "layer_norm1", "norm2": "layer_norm2"}
FLAVA = Norms("layernorm_before", "layernorm_after", "layernorm")


def _read(checkpoint: Checkpoint, causal: bool, activation: str, eps: float) -> Canonical:
    config, words = checkpoint.config, "embeddings.token_embedding.weight"
    terms: Terms = {
        "embedding.weight": src(words),
        "pos_embed": src("embeddings.position_embedding.weight").table(),
        **affine("norm", "final_layer_norm"),
    }
    terms |= all_affine(NAMES, "blocks.{i}.", LAYER)
    dim = checkpoint.shape(words)[1]
    architecture = Architecture(
        "encoder",
        dim=dim,
        depth=checkpoint.depth(LAYER + "self_attn.out_proj.weight"),
        **head_facts(config, dim),
        eps=read_eps(config, default=eps),
        activation=read_activation(config, default=activation),
        causal=causal,
    )
    return Canonical(terms, architecture)


def read_clip_text(checkpoint: Checkpoint) -> Canonical:
    """Read CLIP's text tower: tokens attend to earlier ones only; the last one stands for the text."""
    canonical = _read(checkpoint, True, "quick_gelu", 1e-5)
    return Canonical(
        canonical.terms, canonical.architecture, {r"text_projection\..*": "projection of the end-of-text token"}
    )


def read_siglip_text(checkpoint: Checkpoint) -> Canonical:
    """Read CLIP's names, but tokens attend to all."""
    if "head.weight" not in checkpoint:
        raise ValueError("the teacher lacks head.weight, which distinguishes SigLIP's text encoder from CLIP's")
    canonical = _read(checkpoint, False, "gelu_pytorch_tanh", 1e-6)
    return Canonical(
        canonical.terms,
        canonical.architecture,
        {r"head\..*": "projection of the last token", r"(classifier|score)\..*": "head of a task"},
    )


def read_flava_text(checkpoint: Checkpoint) -> Canonical:
    """Read BERT's embedding and ViT's layers, whose attention is named attention.attention."""
    layer = "encoder.layer.{i}."
    terms = embedding_terms(checkpoint) | bert_layers(FLAVA) | affine("norm", "layernorm")
    for part in ("query", "key", "value"):
        terms |= affine(f"blocks.{{i}}.attn.{part[0]}", f"{layer}attention.attention.{part}")
    depth = checkpoint.depth(layer + "attention.output.dense.weight")
    dim = checkpoint.shape("embeddings.word_embeddings.weight")[1]
    return Canonical(terms, encoder_facts(checkpoint, depth, dim, "pre"), HEADS)


WORDS = "embeddings.token_embedding.weight"
FAMILIES = (
    Family(
        "clip_text",
        "text encoders of CLIP, MetaCLIP 2, CLIPSeg, OWL-ViT, OWLv2, GroupViT, X-CLIP",
        ("clip_text_model", "metaclip_2_text_model", "clipseg_text_model", "owlvit_text_model", "owlv2_text_model",
         "groupvit_text_model", "xclip_text_model"),
        WORDS,
        read_clip_text,
    ),
    Family(
        "siglip_text",
        "text encoders of SigLIP and SigLIP 2",
        ("siglip_text_model", "siglip2_text_model"),
        WORDS,
        read_siglip_text,
    ),
    Family(
        "flava_text",
        "text encoder of FLAVA",
        ("flava_text_model",),
        "embeddings.word_embeddings.weight",
        read_flava_text,
    ),
)  # fmt: skip
