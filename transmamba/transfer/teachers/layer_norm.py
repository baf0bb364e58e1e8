"""Decoder language models with rotary positions and LayerNorm, from GPT-NeoX to Cohere."""

from typing import Any

from transmamba.transfer.teachers.architecture import Rope
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.decoder import (
    FIRST,
    LLAMA,
    Steps,
    block_terms,
    decoder_facts,
    head_counts,
    ignored,
    interleaved,
    layers,
    stem_terms,
    without,
)
from transmamba.transfer.teachers.facts import read_activation, read_ropes, read_windows
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.terms import src

DOWN = "layers.{i}.mlp.down_proj.weight"
WIDE = "layers.{i}.mlp.dense_4h_to_h.weight"
QK_LAYERNORM = {"attn.q_norm": "self_attn.q_layernorm", "attn.k_norm": "self_attn.k_layernorm"}
FUSED = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attn.out": "attention.dense",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
} | dict.fromkeys(("attn.q", "attn.k", "attn.v"), "attention.query_key_value")


def split_fused(groups: int, queries: int) -> dict[str, Steps]:
    """Split a fused matrix of `groups`, each of some query heads, one key head and one value head."""
    slots = queries + 2
    return {
        "attn.q": lambda term: term.slots(groups, slots, 0, queries),
        "attn.k": lambda term: term.slots(groups, slots, queries, queries + 1),
        "attn.v": lambda term: term.slots(groups, slots, queries + 1, slots),
    }


def read_gpt_neox(checkpoint: Checkpoint) -> Canonical:
    """Read GPT-NeoX: one matrix alternates queries, keys and values by head; branches share the input of the block."""
    config, depth = checkpoint.config, layers(checkpoint, WIDE)
    heads = head_counts(checkpoint)[0]
    facts = decoder_facts(
        checkpoint, "embed_in.weight", WIDE, norm="layer", kv_heads=None, head_dim=None,
        ropes=read_ropes(config, depth),
        activation=read_activation(config, default="gelu"), parallel=config("use_parallel_residual", default=True),
    )  # fmt: skip
    terms = stem_terms(checkpoint, "embed_in.weight", "final_layer_norm") | block_terms(FUSED, split_fused(heads, 1))
    buffers = {r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)": "buffer"}
    return Canonical(terms, facts, ignored(checkpoint) | buffers)


def read_persimmon(checkpoint: Checkpoint) -> Canonical:
    """Read GPT-NeoX's fused matrix in blocks of two steps, with a LayerNorm on the heads of queries and keys."""
    config, depth = checkpoint.config, layers(checkpoint, WIDE)
    names = {part: name.replace("attention.", "self_attn.") for part, name in FUSED.items()} | {"norm2": FUSED["norm2"]}
    heads = head_counts(checkpoint)[0]
    if "layers.0.self_attn.q_layernorm.weight" in checkpoint:
        names |= QK_LAYERNORM
    facts = decoder_facts(
        checkpoint, layer=WIDE, norm="layer", kv_heads=None, head_dim=None, ropes=read_ropes(config, depth),
        activation=read_activation(config, default="relu2"),
    )  # fmt: skip
    terms = stem_terms(checkpoint, norm="final_layernorm") | block_terms(names, split_fused(heads, 1))
    return Canonical(terms, facts, ignored(checkpoint))


def read_phi(checkpoint: Checkpoint) -> Canonical:
    """Read Phi, whose attention and MLP read the output of one and the same norm."""
    config, down = checkpoint.config, "layers.{i}.mlp.fc2.weight"
    names = without(LLAMA, "mlp.gate") | {"attn.out": "self_attn.dense", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
    names["norm2"] = names["norm1"]
    if "layers.0.self_attn.q_layernorm.weight" in checkpoint:
        names |= QK_LAYERNORM
    facts = decoder_facts(
        checkpoint, layer=down, norm="layer", parallel=True, ropes=read_ropes(config, layers(checkpoint, down)),
        activation=read_activation(config, default="gelu_new"),
    )  # fmt: skip
    return Canonical(stem_terms(checkpoint, norm="final_layernorm") | block_terms(names), facts, ignored(checkpoint))


def read_starcoder2(checkpoint: Checkpoint) -> Canonical:
    """Read LLaMA's blocks with LayerNorm and an MLP without a gate."""
    config, down = checkpoint.config, "layers.{i}.mlp.c_proj.weight"
    names = without(LLAMA, "mlp.gate") | {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    facts = decoder_facts(
        checkpoint, layer=down, norm="layer", windows=read_windows(config, layers(checkpoint, down)),
        activation=read_activation(config, default="gelu_pytorch_tanh"),
    )  # fmt: skip
    return Canonical(stem_terms(checkpoint) | block_terms(names), facts, ignored(checkpoint))


def read_stablelm(checkpoint: Checkpoint) -> Canonical:
    """Read LLaMA's blocks with LayerNorm; parallel ones have one norm for both branches."""
    config = checkpoint.config
    if config("qk_layernorm") or "layers.0.self_attn.q_layernorm.norms.0.weight" in checkpoint:
        raise ValueError("qk_layernorm is refused: every head has a norm of its own, canonical heads share one")
    parallel = config("use_parallel_residual", default=False)
    names = LLAMA | ({"norm2": LLAMA["norm1"]} if parallel else {})
    ropes = read_ropes(config, layers(checkpoint, DOWN))
    facts = decoder_facts(checkpoint, norm="layer", parallel=parallel, ropes=ropes)
    return Canonical(stem_terms(checkpoint) | block_terms(names), facts, ignored(checkpoint))


def read_nemotron(checkpoint: Checkpoint) -> Canonical:
    """Read Nemotron: LayerNorm stores its gain minus one, and its bias unchanged; the MLP has no gate."""
    config = checkpoint.config
    names = without(LLAMA, "mlp.gate")
    gain: Steps = lambda term: term + 1  # noqa: E731
    facts = decoder_facts(
        checkpoint, norm="layer", ropes=read_ropes(config, layers(checkpoint, DOWN)),
        activation=read_activation(config, default="relu2"),
    )  # fmt: skip
    terms = stem_terms(checkpoint, gain=gain) | block_terms(names, {"norm1": gain, "norm2": gain})
    return Canonical(terms, facts, ignored(checkpoint))


def read_jais2(checkpoint: Checkpoint) -> Canonical:
    """Read LLaMA's blocks with LayerNorm and an MLP without a gate."""
    facts = decoder_facts(checkpoint, norm="layer", activation=read_activation(checkpoint.config, default="relu2"))
    return Canonical(stem_terms(checkpoint) | block_terms(without(LLAMA, "mlp.gate")), facts, ignored(checkpoint))


def read_cohere(checkpoint: Checkpoint) -> Canonical:
    """Read one norm without a bias for two parallel branches, neighbouring channels rotated, logits multiplied."""
    if checkpoint.config("use_qk_norm") or "layers.0.self_attn.q_norm.weight" in checkpoint:
        raise ValueError("use_qk_norm is refused: every head has a norm of its own, canonical heads share one")
    return _cohere(checkpoint, read_ropes(checkpoint.config, layers(checkpoint, DOWN), partial=False))


def read_cohere2(checkpoint: Checkpoint) -> Canonical:
    """Read Cohere with windows; only layers with a window have positions."""
    config, depth = checkpoint.config, layers(checkpoint, DOWN)
    every = config("sliding_window_pattern", default=4)
    windows = read_windows(config, depth, lambda i: bool((i + 1) % every)) or (None,) * depth
    rope = read_ropes(config, depth, partial=False)[0]
    return _cohere(checkpoint, tuple(rope if window else None for window in windows), windows)


def _cohere(checkpoint: Checkpoint, ropes: tuple[Rope | None, ...], windows: tuple[int | None, ...] = ()) -> Canonical:
    facts = decoder_facts(checkpoint, norm="layer", parallel=True, ropes=ropes, windows=windows)
    scale = checkpoint.config("logit_scale", default=0.0625)
    names = LLAMA | {"norm2": LLAMA["norm1"]}
    terms = stem_terms(checkpoint, logit_scale=scale) | block_terms(names, interleaved(checkpoint))
    return Canonical(terms, facts, ignored(checkpoint))


def read_olmo(checkpoint: Checkpoint) -> Canonical:
    """Read LLaMA's blocks with parameterless LayerNorm: its gains are ones, which no tensor stores."""
    if checkpoint.config("clip_qkv") is not None:
        raise ValueError("clip_qkv is refused: queries, keys and values are clipped, which no canonical block does")
    dim = checkpoint.shape("embed_tokens.weight")[1]
    terms = block_terms(without(LLAMA, "norm1", "norm2")) | stem_terms(checkpoint)
    del terms["norm.bias"]
    for norm, layer in (("blocks.{i}.norm1", "{i}"), ("blocks.{i}.norm2", "{i}"), ("norm", "0")):
        terms[f"{norm}.weight"] = src(f"layers.{layer}.self_attn.k_proj.weight").ones(dim)
    return Canonical(terms, decoder_facts(checkpoint, norm="layer", eps=1e-5), ignored(checkpoint))


def read_falcon(checkpoint: Checkpoint) -> Canonical:
    """Read three layouts of one fused matrix, and one, two or sequential norms."""
    config, layer = checkpoint.config, "h.{i}.mlp.dense_4h_to_h.weight"
    if config("alibi"):
        raise ValueError("alibi is refused: positions are added to the scores, which no canonical block does")
    heads, parallel = head_counts(checkpoint)[0], config("parallel_attn", default=True)
    names = {part: name.replace("attention.", "self_attention.") for part, name in FUSED.items()}
    names |= {"norm2": FUSED["norm2"] if not parallel else names["norm1"]}
    if config("new_decoder_architecture"):
        groups = config("num_kv_heads", default=heads)
        if "h.0.ln_attn.weight" in checkpoint:
            names |= {"norm1": "ln_attn", "norm2": "ln_mlp"}
    else:
        groups = 1 if config("multi_query", default=True) else heads
    facts = decoder_facts(
        checkpoint, "word_embeddings.weight", layer, norm="layer", parallel=parallel, kv_heads=groups,
        activation=read_activation(config, "activation", default="gelu"),
    )  # fmt: skip
    terms = stem_terms(checkpoint, "word_embeddings.weight", "ln_f")
    terms |= block_terms(names, split_fused(groups, heads // groups), "h.{i}.")
    return Canonical(terms, facts, ignored(checkpoint))


def _family(name: str, title: str, read: Any, heads: int = 32, marker: str = FIRST, **more: Any) -> Family:
    older = ((r"^embed_out\.", "lm_head."),) if name == "gpt_neox" else ()
    return Family(name, title, (name,), marker, read, older, defaults={"num_attention_heads": heads, **more})


TIED: dict[str, Any] = {"tie_word_embeddings": True, "layer_norm_eps": 1e-5}
FAMILIES = (
    _family(
        "gpt_neox", "GPT-NeoX, Pythia", read_gpt_neox, 64, "layers.0.attention.query_key_value.weight",
        layer_norm_eps=1e-5, partial_rotary_factor=0.25,
    ),
    _family("persimmon", "Persimmon", read_persimmon, 64, layer_norm_eps=1e-5, partial_rotary_factor=0.5),
    _family("phi", "Phi 1 to 2", read_phi, layer_norm_eps=1e-5, partial_rotary_factor=0.5),
    _family("starcoder2", "StarCoder 2", read_starcoder2, 24, norm_epsilon=1e-5, tie_word_embeddings=True),
    _family("stablelm", "StableLM", read_stablelm, layer_norm_eps=1e-5, partial_rotary_factor=0.25),
    _family("nemotron", "Nemotron, Minitron", read_nemotron, 48, norm_eps=1e-5, partial_rotary_factor=0.5),
    _family("jais2", "Jais 2", read_jais2, 26, layer_norm_eps=1e-5),
    _family("cohere", "Command R", read_cohere, 64, rope_theta=5e5, **TIED),
    _family("cohere2", "Command R7B, Command A", read_cohere2, 64, sliding_window=4096, **TIED),
    _family("olmo", "OLMo 1", read_olmo, marker="layers.0.self_attn.q_proj.weight"),
    _family(
        "falcon", "Falcon", read_falcon, 71, "h.0.self_attention.query_key_value.weight", layer_norm_epsilon=1e-5,
        tie_word_embeddings=True,
    ),
)  # fmt: skip
