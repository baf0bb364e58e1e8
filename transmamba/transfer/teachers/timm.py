"""timm's Vision Transformers: ViT, DeiT, AugReg, DeiT-III, DINOv2 and their kin, by names or as modules."""

from collections.abc import Callable
from typing import Literal

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.terms import Term, Terms, affine, optional, src
from transmamba.transfer.teachers.translated import square_grid

BLOCK = "blocks.{i}."
POOLS: dict[str, Literal["token", "mean"]] = {"avg": "mean", "token": "token"}


def read_timm(checkpoint: Checkpoint) -> Canonical:
    """LayerScale is folded; a fused gated MLP (DINOv2 giant) has the gate in its first half."""
    config, prefixes = checkpoint.config, 0
    if config("parallel") or config("rope"):
        raise ValueError("parallel blocks and rotary positions of timm have no place in this family")
    for name in ("cls_token", "dist_token", "reg_token"):
        prefixes += checkpoint.shape(name)[1] if name in checkpoint else 0
    rows = checkpoint.shape("pos_embed")[1]
    grid = config("grid") or square_grid(rows, range(prefixes + 1))
    gated = checkpoint.shape("blocks.0.mlp.fc1.weight")[0] == 2 * checkpoint.shape("blocks.0.mlp.fc2.weight")[1]
    pool: Literal["token", "mean"] = (
        "mean" if "fc_norm.weight" in checkpoint else "token" if "cls_token" in checkpoint else "mean"
    )
    architecture = Architecture(
        "image",
        dim=checkpoint.shape("pos_embed")[2],
        depth=checkpoint.depth(BLOCK + "norm1.weight"),
        heads=config("num_heads", fact="heads"),
        # timm's ViTs with a norm before the first block are CLIPs, of two activations and two eps
        eps=config("eps", default=1e-6, fact="eps" if "norm_pre.weight" in checkpoint else None),
        activation=config("act", default="silu" if gated else "gelu", fact=_doubtful_activation(checkpoint, gated)),
        grid=grid,
        unknown=() if grid else ("grid",),
        pool=POOLS.get(config("global_pool", default=""), pool),
    )
    return Canonical(
        _stem() | _blocks(checkpoint, gated),
        architecture,
        {"mask_token": "token of masked training", r"(norm\.|fc_norm\.)?num_batches_tracked": "counter"},
    )


def _doubtful_activation(checkpoint: Checkpoint, gated: bool) -> str | None:
    return "activation" if gated or "norm_pre.weight" in checkpoint else None


def _stem() -> Terms:
    tokens = {name: src(name) for name in ("cls_token", "dist_token", "reg_token")}
    norms = {name: term for norm in ("norm_pre", "norm", "fc_norm") for name, term in affine(norm, norm).items()}
    heads = affine("head", "head") | affine("head_dist", "head_dist")
    return {
        "pos_embed": src("pos_embed"),
        **affine("patch_embed", "patch_embed.proj"),
        **optional(tokens | norms | heads),
    }


def _blocks(checkpoint: Checkpoint, gated: bool) -> Terms:
    def scaled(gain: str) -> Callable[[Term], Term]:
        return lambda term: term.scale_rows(BLOCK + gain) if f"blocks.0.{gain}" in checkpoint else term

    def part(index: int, count: int) -> Callable[[Term], Term]:
        return lambda term: term.part(index, count)

    terms = affine(BLOCK + "norm1", BLOCK + "norm1") | affine(BLOCK + "norm2", BLOCK + "norm2")
    for index, letter in enumerate("qkv"):
        terms |= affine(f"{BLOCK}attn.{letter}", BLOCK + "attn.qkv", part(index, 3))
    for norm in ("q_norm", "k_norm"):
        terms |= optional(affine(f"{BLOCK}attn.{norm}", f"{BLOCK}attn.{norm}"))
    terms |= affine(BLOCK + "attn.out", BLOCK + "attn.proj", scaled("ls1.gamma"))
    if gated:
        terms |= affine(BLOCK + "mlp.gate", BLOCK + "mlp.fc1", part(0, 2))
    terms |= affine(BLOCK + "mlp.up", BLOCK + "mlp.fc1", part(1, 2) if gated else _same)
    return terms | affine(BLOCK + "mlp.down", BLOCK + "mlp.fc2", scaled("ls2.gamma"))


def _same(term: Term) -> Term:
    return term


FAMILIES = (
    Family("timm_vit", "timm ViT, DeiT, AugReg, DeiT-III, DINOv2", ("timm_vit",), "patch_embed.proj.weight", read_timm),
)
