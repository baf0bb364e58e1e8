"""Vision Transformers of transformers that are plain ViTs: ViT, DeiT, MAE's encoder, I-JEPA, ViT-MSN, FLAVA, Pixio."""

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine, image_facts, read_grid, square_patch
from transmamba.transfer.teachers.terms import Terms, affine, optional, src

BLOCK, LAYER = "blocks.{i}.", "layers.{i}."
PARTS = {
    "norm1": "layernorm_before", "attn.q": "attention.q_proj", "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj", "attn.out": "attention.o_proj", "norm2": "layernorm_after",
    "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
}  # fmt: skip
TOKENS = {"cls_token": "embeddings.cls_token", "dist_token": "embeddings.distillation_token"}
OLDER = (
    (r"^encoder\.layer\.(\d+)\.attention\.attention\.(q|k|v)(uery|ey|alue)\.", r"layers.\1.attention.\2_proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.attention.o_proj."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.mlp.fc2."),
    (r"^encoder\.layer\.", "layers."),
)
PIXIO = ((r"\.norm1\.", ".layernorm_before."), (r"\.norm2\.", ".layernorm_after."))
MARKER, OLDER_MARKER = "layers.0.layernorm_before.weight", "encoder.layer.0.layernorm_before.weight"
IGNORED = {
    r"pooler\.dense\..*": "a layer behind the class token, trained for another task",
    r"embeddings\.mask_token": "token of masked training",
    r"decoder\..*": "decoder of masked training",
}


def read_vit(checkpoint: Checkpoint) -> Canonical:
    """Read ViT: everything is stored as it is used; the models differ only in the input of the classifier."""
    config, tokens = checkpoint.config, [name for name in TOKENS.values() if name in checkpoint]
    if any(checkpoint.shape(name)[1] != 1 for name in tokens):
        raise ValueError("several class tokens: expected one, as the family 'pixio' has several")
    patch = square_patch(checkpoint, "embeddings.patch_embeddings.projection.weight")
    table = checkpoint.shape("embeddings.position_embeddings")
    architecture = Architecture(
        "image",
        dim=table[2],
        depth=checkpoint.depth(LAYER + "layernorm_before.weight"),
        **image_facts(config, eps=1e-6 if config.model_type == "vit_msn" else 1e-12, act="gelu"),
        **read_grid(checkpoint, patch, table[1], (len(tokens),)),
        # I-JEPA has no class token: its classifier reads the mean
        pool="token" if "embeddings.cls_token" in checkpoint else "mean",
    )
    return Canonical(_terms(checkpoint), architecture, IGNORED)


def read_pixio(checkpoint: Checkpoint) -> Canonical:
    """Read Pixio: it has several class tokens, of which the canonical form keeps one and calls the others registers."""
    tokens, table = checkpoint.shape(TOKENS["cls_token"]), checkpoint.shape("embeddings.position_embeddings")
    if tokens[1] < 2:
        raise ValueError("one class token: expected several")
    patch = square_patch(checkpoint, "embeddings.patch_embeddings.projection.weight")
    architecture = Architecture(
        "image",
        dim=table[2],
        depth=checkpoint.depth(LAYER + "layernorm_before.weight"),
        **image_facts(checkpoint.config, eps=1e-6, act="gelu", heads=16),
        **read_grid(checkpoint, patch, table[1], (tokens[1],), square=True),
    )
    rows = src(TOKENS["cls_token"]).reshape(*tokens[1:])
    terms = _terms(checkpoint) | {"cls_token": rows.rows(0, 1).table(), "reg_token": rows.rows(1).table()}
    return Canonical(terms, architecture, {r"\.\./layernorm\..*": "norm of the maps of a backbone"})


def _terms(checkpoint: Checkpoint) -> Terms:
    # a DeiT with both heads averages them; one without reads the class token alone, although it has both tokens
    head = "cls_classifier" if "cls_classifier.weight" in checkpoint else "classifier"
    return {
        **optional({ours: src(theirs) for ours, theirs in TOKENS.items()}),
        "pos_embed": src("embeddings.position_embeddings"),
        **affine("patch_embed", "embeddings.patch_embeddings.projection"),
        **all_affine(PARTS, BLOCK, LAYER),
        **affine("norm", "layernorm"),
        **optional(affine("head", head) | affine("head_dist", "distillation_classifier")),
    }


FAMILIES = (
    Family(
        "vit", "ViT, DeiT, MAE, I-JEPA, ViT-MSN, FLAVA's image tower",
        ("vit", "deit", "vit_mae", "ijepa", "vit_msn", "flava_image_model"), MARKER, read_vit, OLDER, (OLDER_MARKER,),
    ),
    Family(
        "pixio", "Pixio", ("pixio",), MARKER, read_pixio, OLDER + PIXIO, ("encoder.layer.0.norm1.weight",),
    ),
)  # fmt: skip
