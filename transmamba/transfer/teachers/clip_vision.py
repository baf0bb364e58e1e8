"""Image towers of CLIP and SigLIP, alone or inside of larger models such as LLaVA."""

import math

from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.images import all_affine, image_facts, read_grid, square_patch
from transmamba.transfer.teachers.terms import Term, Terms, affine, optional, src

BLOCK, LAYER = "blocks.{i}.", "encoder.layers.{i}."
PARTS = {
    "norm1": "layer_norm1", "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj", "norm2": "layer_norm2", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
}  # fmt: skip
PATCHES, TABLE = "embeddings.patch_embedding", "embeddings.position_embedding.weight"
TEXT = {r"text_model\..*": "the text tower", r"text_projection\..*|logit_(scale|bias)": "compares images with texts"}


def read_clip(checkpoint: Checkpoint) -> Canonical:
    """There is a norm before the first block, and none behind the last one.

    `post_layernorm` follows the pooling, and a classifier does not read it.
    """
    table, patch = checkpoint.shape(TABLE), square_patch(checkpoint, PATCHES + ".weight")
    classifier = "classifier.weight" in checkpoint
    architecture = Architecture(
        "image",
        dim=table[1],
        depth=checkpoint.depth(LAYER + "layer_norm1.weight"),
        **image_facts(checkpoint.config, eps=1e-5, act="quick_gelu"),
        **read_grid(checkpoint, patch, table[0], (1,)),
        pool="mean" if classifier else "token",
    )
    terms = {
        "cls_token": src("embeddings.class_embedding").table(),
        "pos_embed": src(TABLE).table(),
        **affine("patch_embed", PATCHES),
        # the name is misspelt in every checkpoint
        **affine("norm_pre", "pre_layrnorm"),
        **all_affine(PARTS, BLOCK, LAYER),
        **({} if classifier else affine("fc_norm", "post_layernorm")),
        **optional(affine("head", "classifier" if classifier else "visual_projection")),
    }
    norm = {r"post_layernorm\..*": "norm of the class token, which the classifier does not read"}
    return Canonical(terms, architecture, TEXT | norm if classifier else TEXT)


def read_siglip(checkpoint: Checkpoint) -> Canonical:
    """No class token; SigLIP 2 cuts patches beforehand and embeds them by a matrix."""
    config, table = checkpoint.config, checkpoint.shape(TABLE)
    linear = len(checkpoint.shape(PATCHES + ".weight")) == 2
    channels = config("num_channels", default=3)
    patch = _patch(checkpoint, channels) if linear else square_patch(checkpoint, PATCHES + ".weight")
    architecture = Architecture(
        "image",
        dim=table[1],
        depth=checkpoint.depth(LAYER + "layer_norm1.weight"),
        **image_facts(config, eps=1e-6, act="gelu_pytorch_tanh"),
        **read_grid(checkpoint, patch, table[0], (0,)),
        pool="mean",
    )
    terms = {
        "pos_embed": src(TABLE).table(),
        **(_convolution(table[1], patch, channels) if linear else affine("patch_embed", PATCHES)),
        **all_affine(PARTS, BLOCK, LAYER),
        **affine("norm", "post_layernorm"),
        **optional(affine("head", "classifier")),
    }
    return Canonical(terms, architecture, TEXT | {r"head\..*": "attention pooling"})


def _patch(checkpoint: Checkpoint, channels: int) -> int:
    values = checkpoint.shape(PATCHES + ".weight")[1]
    patch = math.isqrt(values // channels)
    if patch * patch * channels != values:
        raise ValueError(f"{values} values are no square patch of {channels} channels: give the config")
    return patch


def _convolution(dim: int, patch: int, channels: int) -> Terms:
    # a patch is stored pixel by pixel, and the channels of a pixel side by side; a convolution has them outermost
    weight: Term = src(PATCHES + ".weight").reshape(dim, patch, patch, channels).permute(0, 3, 1, 2)
    return affine("patch_embed", PATCHES) | {"patch_embed.weight": weight}


FAMILIES = (
    Family(
        "clip_vision", "CLIP's image tower, also of AltCLIP, Chinese CLIP, CLIPSeg, MetaCLIP 2",
        ("clip_vision_model", "altclip_vision_model", "chinese_clip_vision_model", "clipseg_vision_model",
         "metaclip_2_vision_model"),
        "pre_layrnorm.weight", read_clip,
    ),
    Family(
        "siglip_vision", "SigLIP's and SigLIP 2's image tower", ("siglip_vision_model", "siglip2_vision_model"),
        "embeddings.patch_embedding.bias", read_siglip,
    ),
)  # fmt: skip
