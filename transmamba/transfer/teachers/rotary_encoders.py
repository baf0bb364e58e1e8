"""Encoders of text with rotary positions: ModernBERT, Nomic BERT, GTE, Jina v3, EuroBERT, UltraBERT, ESM C."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint, Config
from transmamba.transfer.teachers.encoders import head_facts, read_eps
from transmamba.transfer.teachers.facts import read_activation, read_ropes
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine
from transmamba.transfer.teachers.terms import Term, affine, optional, src

HEADS = {
    r"pooler\..*": "pooler, a head on the first token",
    r"(lm_head|cls|head|decoder|score|classifier|dense|qa_outputs)\..*": "head of a task",
}
LAYER = "layers.{i}."
PROJECTIONS = {
    "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj",
}  # fmt: skip
PRE_NORM = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
POST_NORM = {"norm1": "post_attention_layernorm", "norm2": "post_mlp_layernorm"}


def by_layer_type(config: Config, depth: int, full_at: Callable[[int], bool], thetas: dict[str, Any]) -> Config:
    """Fill in the configuration's `layer_types` and `rope_parameters`, as transformers does for older ones.

    Args:
        config: the teacher's configuration.
        depth: number of layers.
        full_at: whether a layer attends to all tokens, where `layer_types` is not given.
        thetas: base of the rotary frequencies by layer type, where none is given.
    """
    names = {True: "full_attention", False: "sliding_attention"}
    kinds = config("layer_types", default=[names[full_at(layer)] for layer in range(depth)], fact="windows")
    unknown = set(kinds) - set(names.values())
    if unknown or len(kinds) != depth:
        raise ValueError(f"layer_types names {len(kinds)} layers of types {', '.join(sorted(set(kinds)))}, not {depth}")
    given = config("rope_parameters", default={}, fact="ropes")
    scaling = config("rope_scaling", default={})
    ropes = {kind: {"rope_theta": theta, **scaling, **(given.get(kind) or {})} for kind, theta in thetas.items()}
    return Config({**config.values, "layer_types": kinds, "rope_parameters": ropes})


def read_modernbert(checkpoint: Checkpoint) -> Canonical:
    """Read ModernBERT: queries, keys and values are one matrix; the MLP's gate is the first half of Wi."""
    layer, config = LAYER, checkpoint.config
    depth, every = checkpoint.depth(layer + "attn.Wqkv.weight"), config("global_attn_every_n_layers", default=3)
    dim = checkpoint.shape("embeddings.tok_embeddings.weight")[1]
    full = config("global_rope_theta", default=160_000.0)
    thetas = {
        "full_attention": full,
        "sliding_attention": config.values.get("local_rope_theta", 10_000.0) or full,
    }
    kinds = by_layer_type(config, depth, lambda i: i % every == 0, thetas)
    # half of local_attention on either side, the token at that distance included
    window = config("local_attention", default=128) // 2 + 1
    terms = {"embedding.weight": src("embeddings.tok_embeddings.weight")}
    terms |= affine("embed_norm", "embeddings.norm") | affine("norm", "final_norm")
    for index in range(1, depth):
        # the first layer reads the norm of the embedding, and has no norm of its own
        terms |= affine(f"blocks.{index}.norm1", f"layers.{index}.attn_norm")
    for index, letter in enumerate("qkv"):
        terms |= affine(f"blocks.{{i}}.attn.{letter}", layer + "attn.Wqkv", _part(index, 3))
    for index, name in enumerate(("gate", "up")):
        terms |= affine(f"blocks.{{i}}.mlp.{name}", layer + "mlp.Wi", _part(index, 2))
    for canonical, name in {"attn.out": "attn.Wo", "norm2": "mlp_norm", "mlp.down": "mlp.Wo"}.items():
        terms |= affine(f"blocks.{{i}}.{canonical}", layer + name)
    architecture = Architecture(
        "encoder",
        dim=dim,
        depth=depth,
        **head_facts(config, dim),
        eps=config("norm_eps", default=1e-5, fact="eps"),
        activation=read_activation(config, "hidden_activation", default="gelu"),
        ropes=read_ropes(kinds, depth, layer_types=tuple(kinds("layer_types")), partial=False),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds("layer_types")),
    )
    return Canonical(terms, architecture, HEADS)


def _part(index: int, count: int) -> Callable[[Term], Term]:
    return lambda term: term.part(index, count)


def rotary_facts(checkpoint: Checkpoint, embedding: str, theta: float, activation: str) -> Architecture:
    """Read the facts that the configurations of these encoders have in common."""
    config, depth = checkpoint.config, checkpoint.depth(LAYER + "self_attn.o_proj.weight")
    dim = checkpoint.shape(embedding)[1]
    return Architecture(
        "encoder",
        dim=dim,
        depth=depth,
        heads=head_facts(config, dim)["heads"],
        kv_heads=config("num_key_value_heads"),
        head_dim=config("head_dim"),
        activation=read_activation(config, default=activation),
        ropes=() if config("layer_types") else read_ropes(config, depth, theta, partial=False),
    )


def _post_norm(checkpoint: Checkpoint, theta: float, activation: str, names: dict[str, str]) -> Canonical:
    """Read BERT's embedding without positions, and norms after each sum."""
    embedding = "embeddings.word_embeddings.weight"
    terms = {"embedding.weight": src(embedding)} | affine("embed_norm", "embeddings.LayerNorm")
    terms |= optional({"type_embedding.weight": src("embeddings.token_type_embeddings.weight")})
    architecture = replace(
        rotary_facts(checkpoint, embedding, theta, activation),
        placement="post",
        eps=read_eps(checkpoint.config),
    )
    terms |= all_affine(names | POST_NORM, "blocks.{i}.", LAYER)
    if "layers.0.self_attn.qkv.weight" in checkpoint:
        # modules hold in parts a tensor that files hold whole
        for index, letter in enumerate("qkv"):
            terms |= affine(f"blocks.{{i}}.attn.{letter}", LAYER + "self_attn.qkv", _part(index, 3))
    if "layers.0.mlp.up_gate.weight" in checkpoint:
        for index, name in enumerate(("up", "gate")):
            terms |= affine(f"blocks.{{i}}.mlp.{name}", LAYER + "mlp.up_gate", _part(index, 2))
    return Canonical(terms, architecture, HEADS)


def read_nomic(checkpoint: Checkpoint) -> Canonical:
    """Read Nomic: gated MLP, no biases."""
    if "n_embd" in checkpoint.config.values:
        raise ValueError("the configuration is that of nomic-ai's own code: expected the one that transformers writes")
    return _post_norm(checkpoint, 1000.0, "silu", PROJECTIONS)


def read_gte(checkpoint: Checkpoint) -> Canonical:
    """Read GTE: gated MLP; token types where there are any."""
    return _post_norm(checkpoint, 160_000.0, "gelu", PROJECTIONS)


def read_jina(checkpoint: Checkpoint) -> Canonical:
    """Read Jina: plain MLP; adapters of tasks are to be merged before."""
    names = {name: stored for name, stored in PROJECTIONS.items() if not name.startswith("mlp")}
    return _post_norm(checkpoint, 20_000.0, "gelu", names | {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"})


def _pre_norm(checkpoint: Checkpoint, eps: float) -> Canonical:
    """Read LLaMA's layers with attention in both directions."""
    terms = {"embedding.weight": src("embed_tokens.weight")} | affine("norm", "norm")
    terms |= all_affine(PROJECTIONS | PRE_NORM, "blocks.{i}.", LAYER)
    architecture = replace(
        rotary_facts(checkpoint, "embed_tokens.weight", 10_000.0, "silu"),
        norm="rms",
        eps=checkpoint.config("rms_norm_eps", default=eps, fact="eps"),
    )
    return Canonical(terms, architecture, HEADS)


def read_eurobert(checkpoint: Checkpoint) -> Canonical:
    """Read LLaMA's layers with attention in both directions."""
    return _pre_norm(checkpoint, 1e-5)


def read_ultrabert(checkpoint: Checkpoint) -> Canonical:
    """Read EuroBERT with local layers."""
    canonical, config = _pre_norm(checkpoint, 1e-6), checkpoint.config
    depth = canonical.architecture.depth
    thetas = {"sliding_attention": 10_000.0, "full_attention": 2_560_000.0}
    kinds = by_layer_type(config, depth, lambda i: (i + 1) % 3 == 0, thetas)
    # the token at the distance sliding_window is attended to
    window = config("sliding_window", default=128) + 1
    architecture = replace(
        canonical.architecture,
        ropes=read_ropes(kinds, depth, layer_types=tuple(kinds("layer_types")), partial=False),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds("layer_types")),
    )
    return replace(canonical, architecture=architecture)


def read_esmc(checkpoint: Checkpoint) -> Canonical:
    """Read ESM C: norms over all heads of queries and keys; a constant of the depth divides both branches."""
    if "layers.0.input_layernorm.bias" not in checkpoint:
        raise ValueError("the teacher lacks layers.0.input_layernorm.bias, which distinguishes ESM C from decoders")
    canonical = _pre_norm(checkpoint, 1e-5)
    scale = 1 / math.sqrt(canonical.architecture.depth / 36)
    terms = canonical.terms | affine("blocks.{i}.attn.out", LAYER + "self_attn.o_proj", lambda term: term * scale)
    terms |= affine("blocks.{i}.mlp.down", LAYER + "mlp.down_proj", lambda term: term * scale)
    for letter in "qk":
        terms |= affine(f"blocks.{{i}}.attn.{letter}_norm", f"{LAYER}self_attn.{letter}_norm")
    return replace(canonical, terms=terms, architecture=replace(canonical.architecture, norm="layer", eps=1e-5))


WORDS = "embeddings.word_embeddings.weight"
# names in files, which transformers writes as well
NORMS_IN_FILES = (
    (r"^encoder\.layers?\.", "layers."),
    (r"^emb_ln\.", "embeddings.LayerNorm."),
    (r"\.(norm1|attn_ln)\.", ".post_attention_layernorm."),
    (r"\.(norm2|mlp_ln)\.", ".post_mlp_layernorm."),
    (r"\.(attn|mixer)\.out_proj\.|\.attention\.o_proj\.", ".self_attn.o_proj."),
    (r"\.(attn|mixer)\.Wqkv\.|\.attention\.qkv_proj\.", ".self_attn.qkv."),
)
NOMIC_IN_FILES = ((r"\.fc11\.", ".up_proj."), (r"\.fc12\.", ".gate_proj."), (r"\.fc2\.", ".down_proj."))
GTE_IN_FILES = ((r"\.up_gate_proj\.", ".up_gate."),)
FAMILIES = (
    Family("modernbert", "ModernBERT", ("modernbert",), "embeddings.tok_embeddings.weight", read_modernbert),
    Family("nomic_bert", "Nomic BERT", ("nomic_bert",), WORDS, read_nomic, NORMS_IN_FILES + NOMIC_IN_FILES),
    Family("gte", "GTE", ("gte",), WORDS, read_gte, NORMS_IN_FILES + GTE_IN_FILES),
    Family("jina_v3", "Jina embeddings v3", ("jina_embeddings_v3",), WORDS, read_jina, NORMS_IN_FILES),
    Family("eurobert", "EuroBERT", ("eurobert",), "embed_tokens.weight", read_eurobert),
    Family("ultrabert", "UltraBERT", ("ultrabert",), "embed_tokens.weight", read_ultrabert),
    Family("esmc", "ESM C", ("esmc",), "embed_tokens.weight", read_esmc),
)
