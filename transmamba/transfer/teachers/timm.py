"""timm's Vision Transformers by names or as modules: ViT, DeiT, AugReg, DINOv2, CLIP, SigLIP, BEiT, DINOv3."""

from collections.abc import Callable
from typing import Any, Literal

from transmamba.transfer.teachers.architecture import Architecture, Rope
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.facts import canonical_activation
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import square_patch
from transmamba.transfer.teachers.terms import Term, Terms, affine, optional, src
from transmamba.transfer.teachers.translated import square_grid

BLOCK, FIRST = "blocks.{i}.", "blocks.0."
TABLE = "attn.relative_position_bias_table"
SHARED = "rel_pos_bias.relative_position_bias_table"
TOKENS = ("cls_token", "dist_token", "reg_token")
POOLS: dict[str, Literal["token", "mean"]] = {"avg": "mean", "token": "token"}
NO_MODULE = "tensors do not show which: give the module instead of its state dict"
IGNORED = {
    "mask_token": "token of masked training",
    r"decoder_.*|lm_head\..*": "head of masked training",
    r"attn_pool\..*": "attention pooling",
    r".*relative_position_index": "numbers of table rows",
}
OLDER = (
    # how the authors of DINOv2 store it
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def read_timm(checkpoint: Checkpoint) -> Canonical:
    """Read timm's ViT: LayerScale is folded; a fused gated MLP (DINOv2 giant) has the gate in its first half.

    A bare state dict is helped by config={"num_heads": ...}, and by the keys "eps", "act", "norm" ("layer" or "rms"),
    "grid", "global_pool" and "rope", which a module has as attributes.
    """
    config = checkpoint.config
    _refuse(checkpoint)
    bias = _relative_bias(checkpoint)
    heads = config("num_heads")
    if heads is None and bias is not None:
        heads = checkpoint.shape(_first(bias.name))[1]
    depth, dim = checkpoint.depth(BLOCK + "norm1.weight"), checkpoint.shape(FIRST + "norm1.weight")[0]
    facts = _numbers(checkpoint) | {"grid": _grid(checkpoint, bias)}
    unknown = facts.pop("unknown") + [
        name for name, fact in (("heads", heads), ("grid", facts["grid"])) if fact is None
    ]
    head, pool = _head(checkpoint, unknown)
    architecture = Architecture(
        "image",
        dim=dim,
        depth=depth,
        heads=heads,
        scale=_scale(checkpoint, heads),
        ropes=_ropes(checkpoint, depth),
        position_resize="bicubic_antialias",
        pool=pool,
        unknown=tuple(unknown),
        **facts,
    )
    terms = _stem() | _blocks(checkpoint) | head
    ignored = IGNORED if head else IGNORED | {r"(fc_norm|head)\..*": "behind a pooling that no canonical model has"}
    return Canonical(terms if bias is None else terms | {BLOCK + "attn.relative_bias": bias}, architecture, ignored)


def _refuse(checkpoint: Checkpoint) -> None:
    """Raise ValueError for parts of a module, and for names that several functions share."""
    config, names = checkpoint.config, checkpoint
    square_patch(checkpoint, "patch_embed.proj.weight")
    if config("refused"):
        raise ValueError(config("refused"))
    if config.model_type is not None:
        return
    table = FIRST + TABLE in names or SHARED in names
    if FIRST + "attn.q_bias" in names and not table and "pos_embed" in names:
        # EVA-02 adds rotary positions, which have no tensors; its largest model has norms behind the branches
        raise ValueError(f"EVA and EVA-02 have these names, with rotary positions or without; {NO_MODULE}")
    normed = "norm.weight" in names or "fc_norm.weight" in names
    scaled = FIRST + "gamma_1" in names and FIRST + "attn.qkv.bias" in names
    pooled = "norm_pre.weight" in names and ("attn_pool.latent" in names or not normed)
    if scaled or pooled:
        raise ValueError(f"a Perception Encoder with rotary positions has these names; {NO_MODULE}")
    plain = FIRST + "attn.qkv.bias" in names or FIRST + "ls1.gamma" in names or FIRST + "attn.q_bias" in names
    if not plain and "cls_token" not in names and "pos_embed" in names:
        raise ValueError(f"a ViT with norms behind the branches has these names; {NO_MODULE}")


def _numbers(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read norms and activation; timm's ViTs with a norm before the first block are CLIPs, of two activations."""
    config, unknown = checkpoint.config, []
    clip, gated = "norm_pre.weight" in checkpoint, _gate(checkpoint) is not None
    rotary = "pos_embed" not in checkpoint and FIRST + TABLE not in checkpoint and SHARED not in checkpoint
    eps, act, norm = config("eps"), config("act"), config("norm")
    quick = "quickgelu" in str(config("architecture"))
    if eps is None and (clip or rotary):
        unknown.append("eps")
    if act is None and (clip or gated) and not quick:
        unknown.append("activation")
    if norm is None and FIRST + "norm1.bias" not in checkpoint:
        raise ValueError("norms without a bias: give config={'norm': 'rms'} or {'norm': 'layer'}, among other facts")
    return {
        "eps": eps or (1e-5 if clip or rotary else 1e-6),
        "activation": canonical_activation(act or ("silu" if gated else "quick_gelu" if quick else "gelu")),
        "norm": norm or "layer",
        "unknown": unknown,
    }


def _grid(checkpoint: Checkpoint, bias: Term | None) -> tuple[int, int] | None:
    """Return the grid of a position table, or of a table of relative positions."""
    known, prefixes = checkpoint.config("grid"), sum(checkpoint.shape(n)[1] for n in TOKENS if n in checkpoint)
    grid = None if known is None else (int(known[0]), int(known[1]))
    if "pos_embed" in checkpoint:
        # rows for all prefix tokens, for none (no_embed_class), or for the class token and no registers
        counts, rows = {0, min(1, prefixes), prefixes}, checkpoint.shape("pos_embed")[1]
        grid = grid or square_grid(rows, counts)
        if grid and rows - grid[0] * grid[1] not in counts:
            raise ValueError(f"a position table of {rows} rows is not that of {grid[0]} by {grid[1]} patches")
    if bias is not None:
        rows = checkpoint.shape(_first(bias.name))[0]
        sides = square_grid(rows, (3,))
        grid = grid or (sides and ((sides[0] + 1) // 2,) * 2)
        if grid and rows != (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3:
            raise ValueError(f"a table of {rows} relative positions is not that of {grid[0]} by {grid[1]} patches")
    return grid


def _scale(checkpoint: Checkpoint, heads: int | None) -> float | None:
    """Return the factor of the scores, if it is not that of the width of a head."""
    scale = checkpoint.config("scale")
    if scale is None or heads is None:
        return scale
    unfused = FIRST + "attn.q_proj.weight" in checkpoint
    rows = checkpoint.shape(FIRST + ("attn.q_proj.weight" if unfused else "attn.qkv.weight"))[0]
    usual = (rows // heads if unfused else rows // (3 * heads)) ** -0.5
    return None if abs(scale - usual) < 1e-9 else scale


def _ropes(checkpoint: Checkpoint, depth: int) -> tuple[Rope | None, ...]:
    rope = checkpoint.config("rope")
    if rope is None and ("pos_embed" in checkpoint or _relative_bias(checkpoint) is not None):
        return ()
    if rope is None and checkpoint.config.model_type is None:
        raise ValueError(
            "no position table: rotary positions have no tensors; give the module, or for DINOv3 add"
            " config={'rope': {'rope_type': 'axial', 'rope_theta': 100.0}} to the other facts"
        )
    if rope is not None and rope.get("rope_type") != "axial":
        raise ValueError(f"rotary positions of class {rope.get('rope_type')} have no canonical form: expected DINOv3's")
    return () if rope is None else (rope,) * depth


def _head(checkpoint: Checkpoint, unknown: list[str]) -> tuple[Terms, Literal["token", "mean"] | None]:
    """Return the head and its input; nothing after attention pooling."""
    pool = checkpoint.config("global_pool")
    if "attn_pool.latent" in checkpoint or pool not in (None, *POOLS):
        return {}, None
    terms = optional(affine("fc_norm", "fc_norm") | affine("head", "head") | affine("head_dist", "head_dist"))
    if pool is not None:
        return terms, POOLS[pool]
    if "head.weight" in checkpoint and "cls_token" in checkpoint and "fc_norm.weight" not in checkpoint:
        unknown.append("pool")
    return terms, "mean" if "fc_norm.weight" in checkpoint or "cls_token" not in checkpoint else "token"


def _stem() -> Terms:
    norms = affine("norm_pre", "norm_pre") | affine("norm", "norm")
    return affine("patch_embed", "patch_embed.proj") | optional(
        {name: src(name) for name in (*TOKENS, "pos_embed")} | norms
    )


def _blocks(checkpoint: Checkpoint) -> Terms:
    terms = affine(BLOCK + "norm1", BLOCK + "norm1") | affine(BLOCK + "norm2", BLOCK + "norm2")
    for index, letter in enumerate("qkv"):
        ours = f"{BLOCK}attn.{letter}"
        if FIRST + "attn.q_proj.weight" in checkpoint:
            terms |= affine(ours, f"{ours}_proj")
            continue
        terms |= affine(ours, BLOCK + "attn.qkv", _part(index, 3))
        if FIRST + "attn.q_bias" in checkpoint:
            # the bias of the keys is a buffer of zeros, which is not stored
            terms |= {f"{ours}.bias": src(f"{ours}_bias").maybe}
    for norm in ("q_norm", "k_norm"):
        terms |= optional(affine(f"{BLOCK}attn.{norm}", f"{BLOCK}attn.{norm}"))
    terms |= affine(BLOCK + "attn.out", BLOCK + "attn.proj", _scaled(checkpoint, "ls1.gamma", "gamma_1"))
    return terms | _mlp(checkpoint)


def _gate(checkpoint: Checkpoint) -> Literal["fused", "apart"] | None:
    if FIRST + "mlp.fc1_g.weight" in checkpoint:
        return "apart"
    rows = checkpoint.shape(FIRST + "mlp.fc1.weight")[0]
    return "fused" if rows == 2 * checkpoint.shape(FIRST + "mlp.fc2.weight")[1] else None


def _mlp(checkpoint: Checkpoint) -> Terms:
    gate, mlp = _gate(checkpoint), BLOCK + "mlp."
    if gate == "apart":
        terms = affine(mlp + "gate", mlp + "fc1_g") | affine(mlp + "up", mlp + "fc1_x")
    elif gate == "fused":
        last = int(bool(checkpoint.config("gate_last")))
        terms = affine(mlp + "gate", mlp + "fc1", _part(last, 2)) | affine(mlp + "up", mlp + "fc1", _part(1 - last, 2))
    else:
        terms = affine(mlp + "up", mlp + "fc1")
    return terms | affine(mlp + "down", mlp + "fc2", _scaled(checkpoint, "ls2.gamma", "gamma_2"))


def _relative_bias(checkpoint: Checkpoint) -> Term | None:
    own = FIRST + TABLE in checkpoint
    if SHARED in checkpoint:
        # both tables are looked up by the same numbers, so their sum is one table
        return src(BLOCK + TABLE).plus(SHARED) if own else src(SHARED)
    return src(BLOCK + TABLE) if own else None


def _part(index: int, count: int) -> Callable[[Term], Term]:
    return lambda term: term.part(index, count)


def _scaled(checkpoint: Checkpoint, *gains: str) -> Callable[[Term], Term]:
    """Fold LayerScale, under either of its names, into the rows it scales."""
    found = next((gain for gain in gains if FIRST + gain in checkpoint), None)
    return lambda term: term if found is None else term.scale_rows(BLOCK + found)


def _first(name: str) -> str:
    return name.replace("{i}", "0")


FAMILIES = (
    Family(
        "timm_vit", "timm ViT, DeiT, AugReg, DeiT-III, DINOv2, CLIP, SigLIP, BEiT, DINOv3", ("timm_vit",),
        "patch_embed.proj.weight", read_timm, OLDER,
    ),
)  # fmt: skip
