"""Common parts of decoder language models: terms by a table of names, facts by transformers' keys."""

from collections.abc import Callable, Mapping
from typing import Any

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.facts import read_activation, read_ropes
from transmamba.transfer.teachers.terms import Term, Terms, affine, src

Steps = Callable[[Term], Term]

LLAMA = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
QK_NORMS = {"attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm"}
FIRST = "layers.0.input_layernorm.weight"
TASKS = {r"(score|classifier|qa_outputs)\..*": "head of another task"}


def without(names: Mapping[str, str], *parts: str) -> dict[str, str]:
    """Return the table without some of its parts."""
    return {part: name for part, name in names.items() if part not in parts}


def block_terms(
    names: Mapping[str, str], steps: Mapping[str, Steps] | None = None, layer: str = "layers.{i}."
) -> Terms:
    """Return the canonical tensors of the blocks.

    Args:
        names: canonical part, such as "attn.q" -> stored name within a layer. Biases are taken where there are any.
        steps: canonical part -> the steps of its weight and bias; of a norm, to its gain alone.
        layer: prefix of the names.
    """
    terms: Terms = {}
    for part, name in names.items():
        change = (steps or {}).get(part, _same)
        terms |= affine(f"blocks.{{i}}.{part}", layer + name, change)
        if "norm" in part:
            terms[f"blocks.{{i}}.{part}.bias"] = src(f"{layer}{name}.bias").maybe
    return terms


def stem_terms(
    checkpoint: Checkpoint,
    embedding: str = "embed_tokens.weight",
    norm: str = "norm",
    head: str = "lm_head",
    *,
    gain: Steps | None = None,
    embed_scale: float = 1.0,
    logit_scale: float = 1.0,
) -> Terms:
    """Return embedding, last norm and head. A tied head is the stored table: factors of the embedding do not apply."""
    gain, own = gain or _same, find_head(checkpoint, head)
    weight = src(embedding) if is_tied(checkpoint, head) else src(f"{own}.weight").maybe
    return {
        "embedding.weight": src(embedding) * embed_scale,
        "norm.weight": gain(src(f"{norm}.weight")),
        "norm.bias": src(f"{norm}.bias").maybe,
        "head.weight": weight * logit_scale,
        "head.bias": (src(f"{own}.bias") * logit_scale).maybe,
    }


def find_head(checkpoint: Checkpoint, head: str = "lm_head") -> str:
    """Find the head's name: at the root, or at any level of the models that wrap the base model."""
    levels = checkpoint.prefix.split(".")[:-1]
    names = [".".join((*levels[:count], head)) for count in range(len(levels), -1, -1)]
    return next((name for name in names if f"{name}.weight" in checkpoint), head)


def is_tied(checkpoint: Checkpoint, head: str = "lm_head") -> bool:
    """Check whether the head is the embedding.

    Files of a tied model lack the head's tensor; without a configuration, so does a model with a prefix and no other
    head, while the base model alone has no prefix.
    """
    config = checkpoint.config
    if config.known:
        return bool(config("tie_word_embeddings", default=False))
    absent = f"{find_head(checkpoint, head)}.weight" not in checkpoint
    if absent and config.defaults.get("tie_word_embeddings"):
        return True
    others = any(name.startswith(("score.", "classifier.", "qa_outputs.")) for name in checkpoint.stored)
    return absent and bool(checkpoint.prefix) and not others


def ignored(checkpoint: Checkpoint, head: str = "lm_head") -> dict[str, str]:
    """List the names of other tasks' heads, and of the copy of the embedding that a tied head is."""
    copy = {find_head(checkpoint, head).replace(".", r"\.") + r"\.weight": "the embedding, to which the head is tied"}
    return TASKS | (copy if is_tied(checkpoint, head) else {})


def decoder_facts(
    checkpoint: Checkpoint,
    embedding: str = "embed_tokens.weight",
    layer: str = "layers.{i}.mlp.down_proj.weight",
    head: str = "lm_head",
    **known: Any,
) -> Architecture:
    """Read the facts under transformers' usual keys.

    Args:
        checkpoint: the teacher.
        embedding: name of the table, for the width of the stream.
        layer: a name by which layers are counted.
        head: name of the head.
        known: facts that the family reads on its own.
    """
    config, depth = checkpoint.config, layers(checkpoint, layer)
    readers: dict[str, Callable[[], Any]] = {
        "heads": lambda: config("num_attention_heads", "n_head", "num_heads", fact="heads"),
        "kv_heads": lambda: config("num_key_value_heads"),
        "head_dim": lambda: config("head_dim"),
        "norm": lambda: "rms",
        "eps": lambda: config(
            "rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "norm_epsilon", default=1e-6, fact="eps"
        ),
        "activation": lambda: read_activation(config, default="silu"),
        "ropes": lambda: read_ropes(config, depth, partial=False),
        "tied": lambda: is_tied(checkpoint, head),
    }
    found = {fact: known[fact] if fact in known else read() for fact, read in readers.items()}
    dim = checkpoint.shape(embedding)[1]
    return Architecture("decoder", dim=dim, depth=depth, causal=True, **{**known, **found})


def layers(checkpoint: Checkpoint, layer: str) -> int:
    """Return the number of layers.

    Raises:
        ValueError: the configuration gives another number than the checkpoint.
    """
    depth = checkpoint.depth(layer)
    said = checkpoint.config("num_hidden_layers", "n_layer", "num_layers", default=depth)
    if said != depth:
        raise ValueError(f"the configuration gives {said} layers, the checkpoint has {depth}")
    return depth


def head_counts(checkpoint: Checkpoint, query: str | None = None) -> tuple[int, int, int]:
    """Return query heads, key heads and channels of a head, where the translation itself needs them.

    Raises:
        ValueError: the checkpoint does not say.
    """
    config = checkpoint.config
    heads = config("num_attention_heads", "n_head", "num_heads")
    if heads is None:
        raise ValueError("the order of the stored rows depends on the number of heads: give the configuration, config=")
    rows = checkpoint.shape(query)[0] if query is not None else config("hidden_size", "n_embd")
    return heads, config("num_key_value_heads", default=heads), config("head_dim") or rows // heads


def interleaved(checkpoint: Checkpoint, partial: float = 1.0, query: str = LLAMA["attn.q"]) -> dict[str, Steps]:
    """Return steps for queries and keys whose rotary pairs lie side by side."""
    heads, kv_heads, head_dim = head_counts(checkpoint, f"layers.0.{query}.weight")
    rotary = int(head_dim * partial)
    return {"attn.q": lambda term: term.halves(heads, rotary), "attn.k": lambda term: term.halves(kv_heads, rotary)}


def times(factor: float) -> Steps:
    """Return the step of a constant multiplier."""
    return lambda term: term * factor


def fused_gate() -> dict[str, Steps]:
    """Return steps of a matrix that holds the gate in its first half and the values in its second."""
    return {"mlp.gate": lambda term: term.part(0, 2), "mlp.up": lambda term: term.part(1, 2)}


def _same(term: Term) -> Term:
    return term
