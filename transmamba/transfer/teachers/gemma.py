"""Gemma: norms store their gain minus one, and embeddings are multiplied by the square root of their width."""

from dataclasses import replace

from transmamba.transfer.teachers.architecture import Architecture, Rope
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.decoder import (
    FIRST,
    LLAMA,
    QK_NORMS,
    block_terms,
    decoder_facts,
    ignored,
    layers,
    stem_terms,
)
from transmamba.transfer.teachers.facts import read_activation, read_kind_ropes, read_layer_types, read_windows
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.terms import Term, Terms, sqrt

BEFORE_MLP = "layers.0.pre_feedforward_layernorm.weight"
DOWN = "layers.{i}.mlp.down_proj.weight"
SANDWICH = LLAMA | {
    # LLaMA's name for the norm before the MLP is here that of the norm behind the attention
    "post_norm1": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "post_norm2": "post_feedforward_layernorm",
}
VAULT = LLAMA | {"norm2": "pre_feedforward_layernorm"}


def read_gemma(checkpoint: Checkpoint) -> Canonical:
    """Read Gemma. "gelu" in a configuration means its tanh approximation, as in the configuration class."""
    config = checkpoint.config
    activation = read_activation(config, default="gelu_pytorch_tanh")
    facts = decoder_facts(checkpoint, activation="gelu_tanh" if activation == "gelu" else activation)
    return Canonical(_terms(checkpoint, LLAMA), _causal(checkpoint, facts), ignored(checkpoint))


def read_gemma2(checkpoint: Checkpoint) -> Canonical:
    """Read Gemma 2: norms on both sides, bounded scores and logits, windows in every other layer."""
    config, depth = checkpoint.config, layers(checkpoint, DOWN)
    names = SANDWICH if "layers.0.post_feedforward_layernorm.weight" in checkpoint else VAULT
    facts = decoder_facts(
        checkpoint,
        placement="sandwich" if names is SANDWICH else "pre",
        activation=read_activation(config, "hidden_activation", default="gelu_pytorch_tanh"),
        scale=_scale(checkpoint),
        windows=read_windows(config, depth, lambda i: i % 2 == 0),
        softcap=config("attn_logit_softcapping", fact="softcap"),
        logit_softcap=config("final_logit_softcapping", fact="logit_softcap"),
    )
    return Canonical(_terms(checkpoint, names), _causal(checkpoint, facts), ignored(checkpoint))


def read_gemma3(checkpoint: Checkpoint) -> Canonical:
    """Read Gemma 3: norms on both sides and on queries and keys; layers with a window have their own base frequency."""
    config, depth = checkpoint.config, layers(checkpoint, DOWN)
    every = config("sliding_window_pattern", default=6)
    kinds = read_layer_types(config, depth, lambda i: bool((i + 1) % every))
    facts = decoder_facts(
        checkpoint,
        placement="sandwich",
        activation=read_activation(config, "hidden_activation", default="gelu_pytorch_tanh"),
        scale=_scale(checkpoint),
        ropes=_ropes(checkpoint, kinds),
        windows=read_windows(config, depth, lambda i: bool((i + 1) % every)),
        logit_softcap=config("final_logit_softcapping"),
    )
    facts, terms = _causal(checkpoint, facts), _terms(checkpoint, SANDWICH | QK_NORMS)
    if facts.kind == "encoder":
        terms = {name: term for name, term in terms.items() if not name.startswith("head.")}
    return Canonical(terms, facts, ignored(checkpoint))


def _terms(checkpoint: Checkpoint, names: dict[str, str]) -> Terms:
    """Scale the embedding, but not the head that is tied to it."""
    scale = sqrt(checkpoint.shape("embed_tokens.weight")[1])
    gains = {part: _gain for part in names if "norm" in part}
    return stem_terms(checkpoint, gain=_gain, embed_scale=scale) | block_terms(names, gains)


def _gain(term: Term) -> Term:
    """Add 1 to the weight: Gemma multiplies by 1 + weight, so fresh weights are zero, where LLaMA's norms have one."""
    return term + 1


def _scale(checkpoint: Checkpoint) -> float:
    # heads may have another width than the number by which scores are scaled
    return float(checkpoint.config("query_pre_attn_scalar", default=256, fact="scale") ** -0.5)


def _ropes(checkpoint: Checkpoint, kinds: tuple[str, ...]) -> tuple[Rope, ...]:
    local = checkpoint.config("rope_local_base_freq", default=10000.0)
    return read_kind_ropes(checkpoint.config, kinds, local)


def _causal(checkpoint: Checkpoint, facts: Architecture) -> Architecture:
    """Return the facts of an encoder where every token attends to those after it as well (EmbeddingGemma).

    Raises:
        ValueError: a Gemma before the third is said to do so.
    """
    if not checkpoint.config("use_bidirectional_attention"):
        return facts
    if "layers.0.self_attn.q_norm.weight" not in checkpoint:
        raise ValueError(
            "use_bidirectional_attention is refused: before Gemma 3 it opens a part of the text, PaliGemma's prompt"
        )
    # the configuration states the window to both sides, its class halves it
    windows = tuple(window if window is None else window // 2 + 1 for window in facts.windows)
    return replace(facts, kind="encoder", causal=False, windows=windows)


GEMMA = {"num_attention_heads": 16, "tie_word_embeddings": True}
GEMMA2 = {
    "num_attention_heads": 8, "tie_word_embeddings": True, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
GEMMA3 = {"num_attention_heads": 8, "tie_word_embeddings": True, "sliding_window": 4096, "rope_theta": 1e6}
FAMILIES = (
    Family("gemma", "Gemma 1", ("gemma",), FIRST, read_gemma, defaults=GEMMA),
    Family("gemma2", "Gemma 2", ("gemma2",), BEFORE_MLP, read_gemma2, defaults=GEMMA2),
    Family("vaultgemma", "VaultGemma", ("vaultgemma",), BEFORE_MLP, read_gemma2, defaults=GEMMA2),
    Family("gemma3", "Gemma 3, EmbeddingGemma", ("gemma3_text",), BEFORE_MLP, read_gemma3, defaults=GEMMA3),
)
