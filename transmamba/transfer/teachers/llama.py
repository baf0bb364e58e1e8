"""LLaMA and what is built like it: Mistral, Qwen, SmolLM, Gemma, OLMo and their kin."""

from collections.abc import Callable

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.facts import read_activation, read_ropes, read_windows
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.terms import Term, Terms, affine, optional, src

LAYER = "layers.{i}."


def decoder_terms(checkpoint: Checkpoint, norm: Callable[[Term], Term] = lambda term: term) -> Terms:
    """Canonical tensors under LLaMA's names.

    Args:
        checkpoint: the teacher.
        norm: steps on the stored gain of a norm.
    """
    tied = checkpoint.config("tie_word_embeddings", default=False) or "lm_head.weight" not in checkpoint
    terms = {
        "embedding.weight": src("embed_tokens.weight"),
        "blocks.{i}.norm1.weight": norm(src(LAYER + "input_layernorm.weight")),
        "blocks.{i}.norm2.weight": norm(src(LAYER + "post_attention_layernorm.weight")),
        "norm.weight": norm(src("norm.weight")),
        "head.weight": src("embed_tokens.weight" if tied else "lm_head.weight"),
    }
    pairs = [(f"attn.{letter}", f"self_attn.{letter}_proj") for letter in "qkv"]
    pairs += [("attn.out", "self_attn.o_proj")] + [
        (f"mlp.{part}", f"mlp.{part}_proj") for part in ("up", "gate", "down")
    ]
    for canonical, name in pairs:
        terms |= affine(f"blocks.{{i}}.{canonical}", LAYER + name)
    for letter in "qk":
        gain = norm(src(f"{LAYER}self_attn.{letter}_norm.weight"))
        terms |= optional({f"blocks.{{i}}.attn.{letter}_norm.weight": gain})
    return terms


def decoder_facts(checkpoint: Checkpoint) -> Architecture:
    """Facts of LLaMA's configuration."""
    config, depth = checkpoint.config, checkpoint.depth(LAYER + "self_attn.o_proj.weight")
    return Architecture(
        "decoder",
        dim=checkpoint.shape("embed_tokens.weight")[1],
        depth=depth,
        heads=config("num_attention_heads", fact="heads"),
        kv_heads=config("num_key_value_heads"),
        head_dim=config("head_dim"),
        norm="rms",
        eps=config("rms_norm_eps", default=1e-6, fact="eps"),
        activation=read_activation(config, "hidden_activation", "hidden_act", default="silu"),
        causal=True,
        ropes=read_ropes(config, depth),
        windows=read_windows(config, depth),
        tied=bool(config("tie_word_embeddings", default=False) or "lm_head.weight" not in checkpoint),
    )


IGNORED = {r"lm_head\.weight": "the embedding, to which the head is tied"}


def read_llama(checkpoint: Checkpoint) -> Canonical:
    """Everything is stored as it is used."""
    return Canonical(decoder_terms(checkpoint), decoder_facts(checkpoint), IGNORED)


FAMILIES = (Family("llama", "LLaMA", ("llama",), "layers.0.input_layernorm.weight", read_llama),)
