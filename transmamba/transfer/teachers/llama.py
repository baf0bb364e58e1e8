"""LLaMA and models of its design, with RMS norms before both branches."""

from collections.abc import Callable
from typing import Any

from transmamba.transfer.teachers.architecture import Rope
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.decoder import (
    FIRST,
    LLAMA,
    QK_NORMS,
    block_terms,
    decoder_facts,
    fused_gate,
    head_counts,
    ignored,
    interleaved,
    layers,
    stem_terms,
    times,
    without,
)
from transmamba.transfer.teachers.facts import (
    read_activation,
    read_kind_ropes,
    read_layer_types,
    read_ropes,
    read_windows,
)
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.terms import Terms

DOWN = "layers.{i}.mlp.down_proj.weight"


def read_llama(checkpoint: Checkpoint) -> Canonical:
    """Read LLaMA: everything is stored as it is used."""
    return Canonical(stem_terms(checkpoint) | block_terms(LLAMA), decoder_facts(checkpoint), ignored(checkpoint))


def read_windowed(checkpoint: Checkpoint) -> Canonical:
    """Read LLaMA with a window in every layer, or in those that `layer_types` names."""
    windows = read_windows(checkpoint.config, layers(checkpoint, DOWN))
    facts = decoder_facts(checkpoint, windows=windows)
    return Canonical(stem_terms(checkpoint) | block_terms(LLAMA), facts, ignored(checkpoint))


def read_qwen(checkpoint: Checkpoint) -> Canonical:
    """Read Qwen 2, with biases on queries, keys and values, or Qwen 3, with norms on the heads of queries and keys."""
    config, depth = checkpoint.config, layers(checkpoint, DOWN)
    first = config("max_window_layers", default=28)
    names = LLAMA | (QK_NORMS if "layers.0.self_attn.q_norm.weight" in checkpoint else {})
    # without use_sliding_window the class sets the window aside, and an older config.json still has it
    windows = read_windows(config, depth, lambda i: i >= first) if config("use_sliding_window") else ()
    return Canonical(
        stem_terms(checkpoint) | block_terms(names), decoder_facts(checkpoint, windows=windows), ignored(checkpoint)
    )


def read_smollm3(checkpoint: Checkpoint) -> Canonical:
    """Read SmolLM3: some layers have no positions, and they may have a window."""
    config, depth = checkpoint.config, layers(checkpoint, DOWN)
    every = config("no_rope_layer_interval", default=4)
    rotated = config("no_rope_layers", default=[(i + 1) % every != 0 for i in range(depth)], fact="ropes")
    ropes: tuple[Rope | None, ...] = read_ropes(config, depth, partial=False)
    facts = decoder_facts(
        checkpoint,
        ropes=tuple(rope if rotated[i] else None for i, rope in enumerate(ropes)),
        windows=read_windows(config, depth, lambda i: not rotated[i]) if config("use_sliding_window") else (),
    )
    return Canonical(stem_terms(checkpoint) | block_terms(LLAMA), facts, ignored(checkpoint))


def read_granite(checkpoint: Checkpoint) -> Canonical:
    """Read Granite: four multipliers, only in the configuration, are folded, the residual one into both branches."""
    config = checkpoint.config
    residual = config("residual_multiplier", default=1.0)
    terms = stem_terms(
        checkpoint,
        embed_scale=config("embedding_multiplier", default=1.0),
        logit_scale=1 / config("logits_scaling", default=1.0),
    )
    terms |= block_terms(LLAMA, {"attn.out": times(residual), "mlp.down": times(residual)})
    scale = config("attention_multiplier", default=1.0, fact="scale")
    return Canonical(terms, decoder_facts(checkpoint, scale=scale), ignored(checkpoint))


def read_interleaved(checkpoint: Checkpoint) -> Canonical:
    """Read Helium and ERNIE 4.5, which rotate neighbouring channels, where LLaMA rotates the halves of a head."""
    terms = stem_terms(checkpoint) | block_terms(LLAMA, interleaved(checkpoint))
    return Canonical(terms, decoder_facts(checkpoint), ignored(checkpoint))


def read_arcee(checkpoint: Checkpoint) -> Canonical:
    """Read LLaMA with an MLP without a gate."""
    facts = decoder_facts(checkpoint, activation=read_activation(checkpoint.config, default="relu2"))
    return Canonical(stem_terms(checkpoint) | block_terms(without(LLAMA, "mlp.gate")), facts, ignored(checkpoint))


def read_phi3(checkpoint: Checkpoint) -> Canonical:
    """Read Phi-3: queries, keys and values are one matrix, the gate and its values another."""
    config = checkpoint.config
    heads, kv_heads, head_dim = head_counts(checkpoint)
    query, keys = heads * head_dim, kv_heads * head_dim
    names = LLAMA | dict.fromkeys(("attn.q", "attn.k", "attn.v"), "self_attn.qkv_proj")
    names |= dict.fromkeys(("mlp.gate", "mlp.up"), "mlp.gate_up_proj")
    steps = {
        "attn.q": lambda term: term.rows(0, query),
        "attn.k": lambda term: term.rows(query, query + keys),
        "attn.v": lambda term: term.rows(query + keys),
    }
    depth = layers(checkpoint, DOWN)
    facts = decoder_facts(checkpoint, ropes=read_ropes(config, depth), windows=read_windows(config, depth))
    return Canonical(stem_terms(checkpoint) | block_terms(names, steps | fused_gate()), facts, ignored(checkpoint))


def read_glm(checkpoint: Checkpoint) -> Canonical:
    """Read GLM: neighbouring channels of half of every head are rotated. GLM-4's blocks have norms on both sides."""
    ropes = read_ropes(checkpoint.config, layers(checkpoint, DOWN))
    names = LLAMA | dict.fromkeys(("mlp.gate", "mlp.up"), "mlp.gate_up_proj")
    sandwich = "layers.0.post_mlp_layernorm.weight" in checkpoint
    if sandwich:
        names |= {"post_norm1": "post_self_attn_layernorm", "post_norm2": "post_mlp_layernorm"}
    steps = interleaved(checkpoint, ropes[0]["partial_rotary_factor"]) | fused_gate()
    facts = decoder_facts(checkpoint, ropes=ropes, placement="sandwich" if sandwich else "pre")
    return Canonical(stem_terms(checkpoint) | block_terms(names, steps), facts, ignored(checkpoint))


def read_exaone4(checkpoint: Checkpoint) -> Canonical:
    """Read EXAONE 4: norms follow the branches; beside layers with a window, those without one have no positions."""
    config, depth = checkpoint.config, layers(checkpoint, DOWN)
    every = config("sliding_window_pattern", default=4)
    windows = read_windows(config, depth, lambda i: bool((i + 1) % every))
    ropes: tuple[Rope | None, ...] = read_ropes(config, depth, partial=False)
    if config("sliding_window") is not None:
        ropes = tuple(rope if window else None for rope, window in zip(ropes, windows, strict=True))
    facts = decoder_facts(checkpoint, placement="output", ropes=ropes, windows=windows)
    return Canonical(stem_terms(checkpoint) | output_terms(), facts, ignored(checkpoint))


def output_terms() -> Terms:
    """Return blocks whose norms follow the branches, and apply to queries and keys."""
    # as its name states, this norm follows the attention; LLaMA's norm of the same name precedes the MLP
    norms = {"norm1": "post_attention_layernorm", "norm2": "post_feedforward_layernorm"}
    return block_terms(LLAMA | norms | QK_NORMS)


def read_olmo2(checkpoint: Checkpoint) -> Canonical:
    """Read OLMo 2: norms follow the branches; those of queries and keys run over all heads at once."""
    facts = decoder_facts(checkpoint, placement="output")
    return Canonical(stem_terms(checkpoint) | output_terms(), facts, ignored(checkpoint))


def read_olmo3(checkpoint: Checkpoint) -> Canonical:
    """Read OLMo 2 with windows; a scaling of positions belongs to the layers without one."""
    config, depth = checkpoint.config, layers(checkpoint, DOWN)
    kinds = read_layer_types(config, depth, lambda i: (i + 1) % 4 != 0)
    facts = decoder_facts(
        checkpoint,
        placement="output",
        ropes=read_kind_ropes(config, kinds),
        windows=read_windows(config, depth, lambda i: (i + 1) % 4 != 0),
    )
    return Canonical(stem_terms(checkpoint) | output_terms(), facts, ignored(checkpoint))


def read_hyperclovax(checkpoint: Checkpoint) -> Canonical:
    """Read Granite's multipliers, except that logits are multiplied, not divided, and norms may follow the branches."""
    config = checkpoint.config
    residual = times(config("residual_multiplier", default=1.0))
    terms = stem_terms(
        checkpoint,
        embed_scale=config("embedding_multiplier", default=1.0),
        logit_scale=config("logits_scaling", default=1.0),
    )
    sandwich = "layers.0.post_norm1.weight" in checkpoint
    if sandwich:
        norms = {"post_norm1": "post_norm1", "post_norm2": "post_norm2"}
        terms |= block_terms(LLAMA | norms, dict.fromkeys(norms, residual))
    else:
        terms |= block_terms(LLAMA, {"attn.out": residual, "mlp.down": residual})
    facts = decoder_facts(checkpoint, scale=config("attention_multiplier"), placement="sandwich" if sandwich else "pre")
    return Canonical(terms, facts, ignored(checkpoint))


def read_cwm(checkpoint: Checkpoint) -> Canonical:
    """Read LLaMA 3 with a window in three of four layers, the first layer having none."""
    config, depth = checkpoint.config, layers(checkpoint, DOWN)
    ropes = read_ropes(config, depth, partial=False)
    facts = decoder_facts(checkpoint, ropes=ropes, windows=read_windows(config, depth, lambda i: i % 4 != 0))
    return Canonical(stem_terms(checkpoint) | block_terms(LLAMA), facts, ignored(checkpoint))


def _family(
    name: str, title: str, read: Callable[[Checkpoint], Canonical], marker: str = FIRST, heads: int = 32, **more: Any
) -> Family:
    return Family(name, title, (name,), marker, read, defaults={"num_attention_heads": heads, **more})


CWM_ROPE = {
    "rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
ERNIE: dict[str, Any] = {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": True}
OUTPUT = "layers.0.post_feedforward_layernorm.weight"
FAMILIES = (
    _family("llama", "LLaMA 1 to 3, SmolLM 1 and 2", read_llama),
    _family("seed_oss", "Seed-OSS", read_llama, heads=80),
    _family("exaone", "EXAONE 3", read_llama, rms_norm_eps=1e-5, rope_theta=5e5),
    _family("internlm3", "InternLM 3", read_llama, rms_norm_eps=1e-5),
    _family("iquestcoder", "IQuest-Coder", read_llama, heads=40, rms_norm_eps=1e-5),
    _family("mistral", "Mistral", read_windowed, sliding_window=4096),
    _family("ministral", "Ministral", read_windowed, sliding_window=4096),
    _family("qwen2", "Qwen 2 and 2.5", read_qwen, sliding_window=4096),
    _family("qwen3", "Qwen 3", read_qwen, sliding_window=4096),
    _family("smollm3", "SmolLM 3", read_smollm3, heads=16, rope_theta=2e6, tie_word_embeddings=True),
    _family("granite", "Granite", read_granite),
    _family("hyperclovax", "HyperCLOVA X", read_hyperclovax),
    _family("cwm", "CWM", read_cwm, heads=48, rms_norm_eps=1e-5, sliding_window=8192, rope_parameters=CWM_ROPE),
    _family("helium", "Helium", read_interleaved, heads=20, rms_norm_eps=1e-8, rope_theta=1e5),
    _family("ernie4_5", "ERNIE 4.5", read_interleaved, heads=16, **ERNIE),
    _family("arcee", "Arcee", read_arcee, rms_norm_eps=1e-5),
    _family("phi3", "Phi-3, Phi-4", read_phi3, rms_norm_eps=1e-5),
    _family("glm", "GLM, GLM-4 (2024)", read_glm, rms_norm_eps=1.5625e-7, partial_rotary_factor=0.5),
    _family("glm4", "GLM-4 (2025)", read_glm, rms_norm_eps=1.5625e-7, partial_rotary_factor=0.5),
    _family("exaone4", "EXAONE 4", read_exaone4, OUTPUT, rms_norm_eps=1e-5, sliding_window=4096),
    _family("olmo2", "OLMo 2", read_olmo2, OUTPUT, rms_norm_eps=1e-5),
    _family("olmo3", "OLMo 3", read_olmo3, OUTPUT, rms_norm_eps=1e-5, sliding_window=4096, rope_theta=5e5),
)
