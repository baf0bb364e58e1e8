"""Image towers of CLIP, SigLIP and BLIP and their kin, alone or inside of larger models such as LLaVA."""

import math
from collections.abc import Callable

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
CONNECTOR = "leads into a language model"
TEXT = {r"text_model\..*": "the text tower", r"text_projection\..*|logit_(scale|bias)": "compares images with texts"}


def read_clip(checkpoint: Checkpoint) -> Canonical:
    """Read CLIP's image tower, which has a norm before the first block and none after the last one.

    `post_layernorm` follows the pooling, and a classifier does not read it; GIT's tower norms all tokens.
    """
    table, patch = checkpoint.shape(TABLE), square_patch(checkpoint, PATCHES + ".weight")
    classifier, kind = "classifier.weight" in checkpoint, checkpoint.config.model_type
    last = "norm" if kind == "git_vision_model" else "fc_norm"
    # the name is misspelt in CLIP's checkpoints
    first = "pre_layrnorm" if "pre_layrnorm.weight" in checkpoint else "pre_layernorm"
    architecture = Architecture(
        "image",
        dim=table[1],
        depth=checkpoint.depth(LAYER + "layer_norm1.weight"),
        **image_facts(
            checkpoint.config,
            eps=1e-5,
            act="gelu" if kind == "idefics_vision" else "quick_gelu",
            heads=16 if kind in ("idefics_vision", "kosmos_2_vision_model") else 12,
        ),
        **read_grid(checkpoint, patch, table[0], (1,)),
        pool="mean" if classifier else "token",
    )
    terms = {
        "cls_token": src("embeddings.class_embedding").table(),
        "pos_embed": src(TABLE).table(),
        **affine("patch_embed", PATCHES),
        **affine("norm_pre", first),
        **all_affine(PARTS, BLOCK, LAYER),
        **({} if classifier else affine(last, "post_layernorm")),
        **optional(affine("head", "classifier" if classifier else "visual_projection")),
    }
    norm = {r"post_layernorm\..*": "norm of the class token, which the classifier does not read"}
    return Canonical(terms, architecture, TEXT | norm if classifier else TEXT)


def read_siglip(checkpoint: Checkpoint) -> Canonical:
    """Read SigLIP without class token; SigLIP 2 embeds ready-cut patches by a matrix; Janus renames a projection."""
    config, table = checkpoint.config, checkpoint.shape(TABLE)
    linear, janus = len(checkpoint.shape(PATCHES + ".weight")) == 2, config.model_type == "janus_vision_model"
    if config("use_qk_norm"):
        raise ValueError("norms of queries and keys have an eps of their own")
    channels = config("num_channels", default=3)
    patch = _patch(checkpoint, channels) if linear else square_patch(checkpoint, PATCHES + ".weight")
    architecture = Architecture(
        "image",
        dim=table[1],
        depth=checkpoint.depth(LAYER + "layer_norm1.weight"),
        **image_facts(config, eps=1e-6, act="gelu" if janus else "gelu_pytorch_tanh", heads=16 if janus else 12),
        **read_grid(checkpoint, patch, table[0], (0,)),
        # only SigLIP 2 for images of any shape has a matrix for its patches
        position_resize="bilinear_antialias" if linear else "bicubic",
        pool="mean",
    )
    terms = {
        "pos_embed": src(TABLE).table(),
        **(_convolution(table[1], patch, channels) if linear else affine("patch_embed", PATCHES)),
        **all_affine(PARTS | ({"attn.out": "self_attn.projection_layer"} if janus else {}), BLOCK, LAYER),
        **affine("norm", "post_layernorm"),
        **optional(affine("head", "classifier")),
    }
    return Canonical(terms, architecture, TEXT | {r"head\..*": "attention pooling", r"connector\..*": CONNECTOR})


def read_blip(checkpoint: Checkpoint) -> Canonical:
    """Read BLIP, whose queries, keys and values are fused; in BLIP-2 the bias of the keys is zero, and stored."""
    table, config = checkpoint.shape("embeddings.position_embedding"), checkpoint.config
    later = config.model_type is not None and config.model_type != "blip_vision_model"
    architecture = Architecture(
        "image",
        dim=table[2],
        depth=checkpoint.depth(LAYER + "layer_norm1.weight"),
        **image_facts(config, eps=1e-6 if later else 1e-5, act="gelu", heads=16 if later else 12),
        **read_grid(checkpoint, square_patch(checkpoint, PATCHES + ".weight"), table[1], (1,)),
        pool="token",
    )
    parts = {ours: theirs for ours, theirs in PARTS.items() if not ours.startswith("attn")}
    terms = {
        "cls_token": src("embeddings.class_embedding"),
        "pos_embed": src("embeddings.position_embedding"),
        **affine("patch_embed", PATCHES),
        **all_affine(parts | {"attn.out": "self_attn.projection"}, BLOCK, LAYER),
        # the class token is normed a second time where it is pooled
        **affine("norm", "post_layernorm"),
        **affine("fc_norm", "post_layernorm"),
    }
    for index, letter in enumerate("qkv"):
        terms |= affine(f"{BLOCK}attn.{letter}", LAYER + "self_attn.qkv", _part(index))
    return Canonical(terms, architecture)


def _part(index: int) -> Callable[[Term], Term]:
    return lambda term: term.part(index, 3)


def _patch(checkpoint: Checkpoint, channels: int) -> int:
    values = checkpoint.shape(PATCHES + ".weight")[1]
    patch = math.isqrt(values // channels)
    if patch * patch * channels != values:
        raise ValueError(f"{values} values do not make a square patch of {channels} channels: give the config")
    return patch


def _convolution(dim: int, patch: int, channels: int) -> Terms:
    # a patch is stored pixel by pixel, and the channels of a pixel side by side; a convolution has them outermost
    weight: Term = src(PATCHES + ".weight").reshape(dim, patch, patch, channels).permute(0, 3, 1, 2)
    return affine("patch_embed", PATCHES) | {"patch_embed.weight": weight}


FAMILIES = (
    Family(
        "clip_vision", "image tower of CLIP, AltCLIP, Chinese CLIP, CLIPSeg, MetaCLIP 2, GIT, Kosmos-2, IDEFICS, OWL",
        ("clip_vision_model", "altclip_vision_model", "chinese_clip_vision_model", "clipseg_vision_model",
         "metaclip_2_vision_model", "git_vision_model", "kosmos_2_vision_model", "idefics_vision",
         "owlvit_vision_model", "owlv2_vision_model"),
        "pre_layrnorm.weight", read_clip, (), ("pre_layernorm.weight",),
    ),
    Family(
        "siglip_vision", "image tower of SigLIP, SigLIP 2, Janus, Granite Docling",
        ("siglip_vision_model", "siglip2_vision_model", "janus_vision_model", "granite_docling_vision"),
        "embeddings.patch_embedding.bias", read_siglip,
    ),
    Family(
        "blip_vision", "image tower of BLIP, BLIP-2, InstructBLIP",
        ("blip_vision_model", "blip_2_vision_model", "instructblip_vision_model", "instructblipvideo_vision_model"),
        "encoder.layers.0.self_attn.qkv.weight", read_blip,
    ),
)  # fmt: skip
