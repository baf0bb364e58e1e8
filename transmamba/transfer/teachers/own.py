"""Transformers of this library: ViT, TransformerEncoder, AudioEncoder, and a MambaLM of attention."""

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.terms import Terms, affine, optional, src

STEM = (
    "cls_token", "dist_token", "reg_token", "pos_embed", "embedding.weight", "type_embedding.weight",
)  # fmt: skip
LAYERS = ("conv1", "conv2", "embed_proj", "embed_norm", "norm_pre", "norm", "fc_norm", "head", "head_dist")
NORMS = ("norm1", "norm2", "post_norm1", "post_norm2")


def read_own_transformer(checkpoint: Checkpoint) -> Canonical:
    """Read the model's own facts; queries, keys and values are one matrix, and so is a gated MLP.

    Raises:
        ValueError: it is a bare state dict, which states no facts.
    """
    facts = checkpoint.config("architecture")
    if not isinstance(facts, Architecture):
        raise ValueError("models of this library are read as modules, not as state dicts")
    terms = optional({name: src(name) for name in STEM})
    for layer in LAYERS:
        terms |= optional(affine(layer, layer))
    terms |= optional(affine("patch_embed", "patch_embed.proj"))
    for i in range(facts.depth):
        terms |= _block(checkpoint, facts, f"blocks.{i}.")
    ignored = {}
    if facts.tied:
        terms["head.weight"] = src("embedding.weight")
        ignored["head\\.weight"] = "the embedding, to which the head is tied"
    return Canonical(terms, facts, ignored)


def _block(checkpoint: Checkpoint, facts: Architecture, block: str) -> Terms:
    mixer = block + ("attn." if f"{block}attn.qkv.weight" in checkpoint else "mixer.")
    queries, keys = ((heads or 0) * (facts.head_dim or 0) for heads in (facts.heads, facts.kv_heads))
    terms = affine(block + "attn.out", mixer + "proj") | _mlp(checkpoint, block + "mlp.")
    terms |= _rows(block + "attn.q", mixer + "qkv", 0, queries)
    terms |= _rows(block + "attn.k", mixer + "qkv", queries, queries + keys)
    terms |= _rows(block + "attn.v", mixer + "qkv", queries + keys, queries + 2 * keys)
    terms |= optional({f"{block}attn.relative_bias": src(mixer + "relative_bias")})
    for norm in ("q_norm", "k_norm"):
        terms |= optional(affine(f"{block}attn.{norm}", mixer + norm))
    for norm in NORMS:
        terms |= optional(affine(block + norm, block + norm))
    return terms


def _mlp(checkpoint: Checkpoint, mlp: str) -> Terms:
    if f"{mlp}fc1.weight" not in checkpoint:
        return {}
    hidden, rows = checkpoint.shape(f"{mlp}fc2.weight")[1], checkpoint.shape(f"{mlp}fc1.weight")[0]
    gate = _rows(mlp + "gate", mlp + "fc1", hidden, rows) if rows > hidden else {}
    return _rows(mlp + "up", mlp + "fc1", 0, hidden) | gate | affine(mlp + "down", mlp + "fc2")


def _rows(canonical: str, name: str, start: int, stop: int) -> Terms:
    """Return some rows of a linear layer."""
    return {
        f"{canonical}.weight": src(f"{name}.weight").rows(start, stop),
        f"{canonical}.bias": src(f"{name}.bias").rows(start, stop).maybe,
    }


FAMILIES = (
    Family(
        "transmamba_transformer", "Transformers of this library", ("transmamba_transformer",),
        "blocks.0.attn.proj.weight", read_own_transformer, older_markers=("blocks.0.mixer.proj.weight",),
    ),
)  # fmt: skip
