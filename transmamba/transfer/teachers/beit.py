"""BEiT, Data2VecVision and InternVL's tower: biases of attention scores by relative position, LayerScale."""

from dataclasses import replace
from typing import Any, Literal

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine, image_facts, read_grid, square_patch
from transmamba.transfer.teachers.terms import Term, Terms, affine, optional, src
from transmamba.transfer.teachers.translated import square_grid
from transmamba.transfer.teachers.vit import BLOCK, LAYER, MARKER, OLDER, OLDER_MARKER, PARTS

OWN = LAYER + "relative_position_bias.relative_position_bias_table"
SHARED = "shared_position_bias.relative_position_bias_table"
TABLE, CLASS = "embeddings.position_embeddings", "embeddings.cls_token"
OLDER_BEIT = (
    (
        r"^encoder\.layer\.(\d+)\.attention\.attention\.relative_position_bias\.",
        r"encoder.layer.\1.relative_position_bias.",
    ),
    (r"^encoder\.relative_position_bias\.", "shared_position_bias."),
    *OLDER,
)
BEIT: dict[str, Any] = {"eps": 1e-12, "act": "gelu"}
INTERNVL: dict[str, Any] = {"eps": 1e-6, "act": "gelu", "heads": 16}
OUTPUT = "0.attention.projection_layer.weight"
TOWERS = ("internvl_vision", "qianfan_ocr_vision")
IGNORED = {
    r"embeddings\.mask_token": "token of masked training",
    r"(\.\./)?layernorm\..*|lm_head\..*": "head of masked training",
    r"(fpn\d?|decode_head|auxiliary_head)\..*": "head of segmentation",
    r".*relative_position_index": "numbers of table rows",
}


def read_beit(checkpoint: Checkpoint) -> Canonical:
    """Read BEiT: queries and values have a bias, keys have none."""
    canonical = _read(checkpoint)
    terms = {name: term for name, term in canonical.terms.items() if name != BLOCK + "attn.k.bias"}
    # the tensors of a plain ViT are BEiT's beside these biases
    required = {f"{BLOCK}attn.{letter}.bias": src(f"{LAYER}attention.{letter}_proj.bias") for letter in "qv"}
    return replace(canonical, terms=terms | required)


def _read(checkpoint: Checkpoint) -> Canonical:
    """Read the blocks: LayerScale is folded; a table that all layers share becomes one of every layer."""
    # the head of masked training has a norm that is called as the model's own, which mean pooling does not have
    own_norm = checkpoint.stored.get("layernorm.weight", "").startswith(checkpoint.prefix or "layernorm")
    table = checkpoint.shape(TABLE)[1] if TABLE in checkpoint else None
    bias = _bias(checkpoint)
    facts = image_facts(checkpoint.config, **(INTERNVL if checkpoint.config.model_type in TOWERS else BEIT)) | _grid(
        checkpoint, table, bias
    )
    if bias is not None and facts["heads"] is None:
        facts["heads"] = checkpoint.shape(bias.name.replace("{i}", "0"))[1]
        checkpoint.config.unknown.remove("heads")
    architecture = Architecture(
        "image",
        dim=checkpoint.shape(CLASS)[2],
        depth=checkpoint.depth(LAYER + "layernorm_before.weight"),
        pool="token" if own_norm else "mean",
        **facts,
    )
    return Canonical(_terms(checkpoint, own_norm, bias), architecture, IGNORED)


def read_internvl(checkpoint: Checkpoint) -> Canonical:
    """Read BEiT's tower with biases or norms of all three of queries, keys and values, and with either kind of norm."""
    config, canonical = checkpoint.config, _read(checkpoint)
    norm = config("norm_type", default="layer_norm", fact="norm")
    normed = LAYER.replace("{i}", "0") + "attention.q_norm.weight" in checkpoint
    if norm == "rms_norm" and "norm.weight" in canonical.terms:
        raise ValueError("RMSNorm in the blocks and LayerNorm behind them")
    if normed and (norm != "rms_norm" or canonical.architecture.eps != 1e-6):
        # the norms of queries and keys are always RMSNorm with an eps of 1e-6
        raise ValueError("norms of queries and keys that are not those of the blocks: expected RMSNorm of eps 1e-6")
    terms = {f"{BLOCK}attn.{name}.weight": src(f"{LAYER}attention.{name}.weight") for name in ("q_norm", "k_norm")}
    kind: Literal["rms", "layer"] = "rms" if norm == "rms_norm" else "layer"
    architecture = replace(canonical.architecture, norm=kind)
    return replace(canonical, terms=canonical.terms | optional(terms), architecture=architecture)


def _bias(checkpoint: Checkpoint) -> Term | None:
    if SHARED not in checkpoint:
        return src(OWN) if OWN.replace("{i}", "0") in checkpoint else None
    # both tables are looked up by the same numbers, so their sum is one table
    return src(OWN).plus(SHARED) if OWN.replace("{i}", "0") in checkpoint else src(SHARED)


def _grid(checkpoint: Checkpoint, table: int | None, bias: Term | None) -> dict[str, Any]:
    patch = square_patch(checkpoint, "embeddings.patch_embeddings.projection.weight")
    facts = read_grid(checkpoint, patch, table, (1,), square=True)
    if bias is None:
        return facts
    rows = checkpoint.shape(bias.name.replace("{i}", "0"))[0]
    if facts["grid"] is None:
        sides = square_grid(rows, (3,))
        facts = {"grid": ((sides[0] + 1) // 2,) * 2} if sides else facts
    grid = facts["grid"]
    if grid is not None and grid[0] != grid[1]:
        # transformers reads the table of such a grid with rows and columns exchanged, and stretches it
        raise ValueError(f"relative positions on a grid of {grid[0]} by {grid[1]} patches: expected a square one")
    if grid is None or rows != (2 * grid[0] - 1) ** 2 + 3:
        raise ValueError(f"a table of {rows} relative positions is not that of the grid {grid}")
    return facts


def _terms(checkpoint: Checkpoint, own_norm: bool, bias: Term | None) -> Terms:
    def scaled(gain: str) -> Any:
        stored = LAYER + gain
        return lambda term: term.scale_rows(stored) if stored.replace("{i}", "0") in checkpoint else term

    return {
        "cls_token": src(CLASS),
        **optional({"pos_embed": src(TABLE)}),
        **affine("patch_embed", "embeddings.patch_embeddings.projection"),
        **all_affine(PARTS, BLOCK, LAYER),
        **affine(BLOCK + "attn.out", LAYER + PARTS["attn.out"], scaled("lambda_1")),
        **affine(BLOCK + "mlp.down", LAYER + PARTS["mlp.down"], scaled("lambda_2")),
        **({} if bias is None else {BLOCK + "attn.relative_bias": bias}),
        **(affine("norm", "layernorm") if own_norm else {}),
        # the norm behind the mean of the patches
        **optional(affine("fc_norm", "pooler.layernorm") | affine("head", "classifier")),
    }


FAMILIES = (
    Family(
        "beit", "BEiT, Data2VecVision", ("beit", "data2vec-vision"), MARKER, read_beit, OLDER_BEIT, (OLDER_MARKER,)
    ),
    Family(
        "internvl_vision", "image tower of InternVL, Qianfan-OCR", TOWERS, f"encoder.layer.{OUTPUT}", read_internvl,
        ((r"^encoder\.layer\.", "layers."), (r"\.attention\.projection_layer\.", ".attention.o_proj.")),
        (f"layers.{OUTPUT}",),
    ),
)  # fmt: skip
