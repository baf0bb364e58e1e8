"""DINOv2 with and without registers, and DINOv3, as transformers stores them."""

from transmamba.transfer.teachers.architecture import Architecture, PositionResize
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine, image_facts, read_grid, square_patch
from transmamba.transfer.teachers.terms import Terms, affine, optional, src

BLOCK = "blocks.{i}."
INPUTS = {
    "norm1": "norm1", "attn.q": "attention.q_proj", "attn.k": "attention.k_proj", "attn.v": "attention.v_proj",
    "norm2": "norm2",
}  # fmt: skip
OLDER = (
    (r"attention\.attention\.(q|k|v)(uery|ey|alue)\.", r"attention.\1_proj."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"mlp\.weights_out\.", "mlp.down_proj."),
)
RESIZE: dict[str, PositionResize] = {
    "dinov2_with_registers": "bicubic_antialias",
    "tipsv2_vision_model": "bilinear_antialias",
}
MASK = {r"embeddings\.mask_token": "token of masked training"}


def read_dinov2(checkpoint: Checkpoint) -> Canonical:
    """Read DINOv2: LayerScale is folded; older versions have the gated MLP as one fused matrix."""
    config, layer = checkpoint.config, "encoder.layer.{i}."
    patch = square_patch(checkpoint, "embeddings.patch_embeddings.projection.weight")
    table = checkpoint.shape("embeddings.position_embeddings")
    facts = image_facts(config, eps=1e-6, act="gelu")
    if "encoder.layer.0.mlp.down_proj.weight" in checkpoint:
        # a gated MLP is gated by SiLU, whatever `hidden_act` is
        facts["activation"] = "silu"
    architecture = Architecture(
        "image",
        dim=table[2],
        depth=checkpoint.depth(layer + "norm1.weight"),
        **facts,
        # registers come after positions are added: the table has a row for the class token, none for them
        **read_grid(checkpoint, patch, table[1], (1,), square=True),
        position_resize=RESIZE.get(config.model_type or "", "bicubic"),
        pool="token",
    )
    terms = {
        "cls_token": src("embeddings.cls_token"),
        "pos_embed": src("embeddings.position_embeddings"),
        **optional({"reg_token": src("embeddings.register_tokens")}),
        **affine("patch_embed", "embeddings.patch_embeddings.projection"),
        **_blocks(checkpoint, layer),
        **affine("norm", "layernorm"),
    }
    head = "reads the class token beside the mean of the patches"
    return Canonical(terms, architecture, MASK | {r"classifier\..*": head})


def read_dinov3(checkpoint: Checkpoint) -> Canonical:
    """Read DINOv3: rotary positions in two axes; biases and the gate are optional, as configured."""
    config, layer = checkpoint.config, "model.layer.{i}."
    patch = square_patch(checkpoint, "embeddings.patch_embeddings.weight")
    depth, registers = checkpoint.depth(layer + "norm1.weight"), checkpoint.shape("embeddings.register_tokens")[1]
    # shift, jitter and rescaling of the coordinates are for training alone
    rope = {"rope_type": "axial", "rope_theta": config("rope_theta", default=100.0, fact="ropes")}
    architecture = Architecture(
        "image",
        dim=checkpoint.shape("norm.weight")[0],
        depth=depth,
        **image_facts(config, eps=1e-5, act="gelu", heads=6),
        **read_grid(checkpoint, patch, None, ()),
        ropes=(rope,) * depth,
        pool="token",
    )
    terms = {
        "cls_token": src("embeddings.cls_token"),
        **({"reg_token": src("embeddings.register_tokens")} if registers else {}),
        **affine("patch_embed", "embeddings.patch_embeddings"),
        **_blocks(checkpoint, layer),
        **affine("norm", "norm"),
    }
    ignored = MASK | ({} if registers else {r"embeddings\.register_tokens": "no registers"})
    return Canonical(terms, architecture, ignored)


def _blocks(checkpoint: Checkpoint, layer: str) -> Terms:
    """Fold both LayerScales into the matrices before them."""
    mlp, first = f"{layer}mlp.", layer.replace("{i}", "0") + "mlp."
    if f"{first}fc1.weight" in checkpoint:
        up, down = affine(BLOCK + "mlp.up", mlp + "fc1"), "fc2"
    elif f"{first}weights_in.weight" in checkpoint:
        gate = affine(BLOCK + "mlp.gate", mlp + "weights_in", lambda term: term.part(0, 2))
        up, down = gate | affine(BLOCK + "mlp.up", mlp + "weights_in", lambda term: term.part(1, 2)), "down_proj"
    else:
        up, down = affine(BLOCK + "mlp.up", mlp + "up_proj"), "down_proj"
        if f"{first}gate_proj.weight" in checkpoint:
            up |= affine(BLOCK + "mlp.gate", mlp + "gate_proj")
    return {
        **all_affine(INPUTS, BLOCK, layer),
        **affine(
            BLOCK + "attn.out", layer + "attention.o_proj", lambda term: term.scale_rows(layer + "layer_scale1.lambda1")
        ),
        **up,
        **affine(BLOCK + "mlp.down", mlp + down, lambda term: term.scale_rows(layer + "layer_scale2.lambda1")),
    }


FAMILIES = (
    Family(
        "dinov2", "DINOv2 with and without registers, TIPSv2's image tower",
        ("dinov2", "dinov2_with_registers", "tipsv2_vision_model"),
        "encoder.layer.0.layer_scale1.lambda1", read_dinov2, OLDER,
    ),
    Family(
        "dinov3", "DINOv3 ViT", ("dinov3_vit",), "embeddings.patch_embeddings.weight", read_dinov3,
        ((r"^layer\.", "model.layer."),),
    ),
)  # fmt: skip
