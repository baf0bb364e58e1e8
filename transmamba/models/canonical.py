"""A Transformer of any known family as one of our own models, with the same output."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from transmamba._checkpoint import Weights
from transmamba._typing import typed
from transmamba.models.audio_encoder import AudioEncoder
from transmamba.models.canonical_parts import Parts
from transmamba.models.canonical_tensors import load_canonical
from transmamba.models.mamba_lm import MambaLM
from transmamba.models.transformer_encoder import TransformerEncoder
from transmamba.models.vit import ViT
from transmamba.nn.embed import image_sides
from transmamba.transfer.teachers import translate


@typed
def from_transformer(
    teacher: Weights, family: str | None = None, *, config: Any = None, img_size: int | tuple[int, int] | None = None
) -> nn.Module:
    """Build the Transformer that a teacher is, as one of our own models with its weights, in evaluation mode.

    An image model becomes a `ViT`, a text encoder a `TransformerEncoder`, an audio encoder an `AudioEncoder` and a
    language model a `MambaLM` with attention in all layers. The weights are copies, of the teacher's dtype and on its
    device.

    Args:
        teacher: a module, a state dict, or `open_safetensors(...)`; or a teacher that is already translated.
        family: name of its family, where its config does not state it; see `transfer.translate`.
        config: the configuration of a bare state dict.
        img_size: rows and columns in pixels of the images to come, or one number for both, if other than the teacher's.
            A position table is resized as transformers resizes it for that family, or timm, and for our own `ViT`
            bicubically; rotary positions follow the grid.

    Raises:
        ValueError: the teacher is refused, the checkpoint alone does not state everything about it, or it has a part
            that our model lacks; the message names it. Patches do not tile `img_size`, or the teacher has positions
            that cannot follow it.

    Example:
        >>> from transmamba.models import ViT
        >>> vit = from_transformer(ViT(img_size=8, patch_size=4, dim=12, depth=2, heads=3, num_classes=5))
        >>> type(vit).__name__, vit(torch.zeros(1, 3, 8, 8)).shape
        ('ViT', torch.Size([1, 5]))
        >>> from_transformer(vit, img_size=(8, 16)).grid
        (2, 4)
    """
    translated = translate(teacher, family, config)
    facts = translated.architecture
    if facts.unknown:
        raise ValueError(
            f"{translated.family}: the checkpoint does not state {', '.join(facts.unknown)}: give its config=..., the "
            "dictionary of its config.json, or the module instead of its state dict"
        )
    if facts.kind not in BUILDERS:
        raise ValueError(
            f"{translated.family}: a teacher of kind {facts.kind!r} is not a Transformer: from_official and from_hf "
            "load state-space models"
        )
    if img_size is not None and facts.kind != "image":
        raise ValueError(f"{translated.family}: img_size= is for image models, this teacher reads {INPUTS[facts.kind]}")
    parts = Parts(translated, None if img_size is None else image_sides(img_size))
    with torch.device("meta"):
        model = BUILDERS[facts.kind](parts)
    load_canonical(model, translated, parts.positions() if facts.kind == "image" else {})
    return model.eval()


def _language_model(parts: Parts) -> nn.Module:
    facts = parts.facts
    if not facts.causal:
        raise parts.refuse("a language model attends to earlier tokens only, this one to all")
    return MambaLM(
        parts.rows("embedding.weight"),
        facts.dim,
        depth=facts.depth,
        mixer=parts.mixers,
        block=parts.blocks,
        tied=facts.tied and parts.same("embedding.weight", "head.weight"),
        vocab_multiple=1,
        norm=facts.norm,
        norm_eps=facts.eps,
        norm_bias=parts.has("norm.bias"),
        final_norm=parts.has("norm.weight"),
        max_length=parts.rows("pos_embed", 1) if parts.has("pos_embed") else None,
        head_bias=parts.has("head.bias"),
        logit_softcap=facts.logit_softcap,
    )


def _image_model(parts: Parts) -> nn.Module:
    facts, has = parts.facts, parts.has
    (rows, columns), side = parts.own_grid, parts.rows("patch_embed.weight", 2)
    class_token, classes = has("cls_token"), parts.rows("head.weight") if has("head.weight") else 0
    if classes and facts.pool is None:
        raise parts.refuse(
            "the checkpoint does not show whether the head reads the class token or the mean: give its config=..."
        )
    return ViT(
        parts.img_size or (rows * side, columns * side),
        side,
        in_chans=parts.rows("patch_embed.weight", 1),
        num_classes=classes,
        dim=facts.dim,
        depth=facts.depth,
        distilled=has("head_dist.weight") or ("token" if has("dist_token") else False),
        mixer=parts.mixers,
        block=parts.blocks,
        class_token=class_token,
        registers=parts.rows("reg_token", 1) if has("reg_token") else 0,
        position_table=has("pos_embed"),
        prefix_positions=parts.prefix_positions,
        patch_bias=has("patch_embed.bias"),
        norm_pre=has("norm_pre.weight"),
        norm=facts.norm,
        norm_eps=facts.eps,
        norm_bias=has("norm_pre.bias", "norm.bias", "fc_norm.bias"),
        final_norm=has("norm.weight"),
        pool="token" if class_token and facts.pool != "mean" else "mean",
        fc_norm=has("fc_norm.weight"),
    )


def _text_encoder(parts: Parts) -> nn.Module:
    facts, has = parts.facts, parts.has
    return TransformerEncoder(
        parts.rows("embedding.weight"),
        facts.dim,
        depth=facts.depth,
        max_length=parts.rows("pos_embed", 1) if has("pos_embed") else None,
        types=parts.rows("type_embedding.weight") if has("type_embedding.weight") else 0,
        embedding_dim=parts.rows("embedding.weight", 1) if has("embed_proj.weight") else None,
        mixer=parts.mixers,
        block=parts.blocks,
        embed_norm=has("embed_norm.weight"),
        final_norm=has("norm.weight"),
        norm=facts.norm,
        norm_eps=facts.eps,
        norm_bias=has("embed_norm.bias", "norm.bias"),
        pad_token=facts.pad_position,
    )


def _audio_encoder(parts: Parts) -> nn.Module:
    facts = parts.facts
    return AudioEncoder(
        parts.rows("conv1.weight", 1),
        facts.dim,
        depth=facts.depth,
        max_length=parts.rows("pos_embed", 1),
        mixer=parts.mixers,
        block=parts.blocks,
        norm=facts.norm,
        norm_eps=facts.eps,
        norm_bias=parts.has("norm.bias"),
    )


INPUTS = {"decoder": "text", "encoder": "text", "audio": "sound"}
BUILDERS: Mapping[str, Callable[[Parts], nn.Module]] = {
    "decoder": _language_model,
    "image": _image_model,
    "encoder": _text_encoder,
    "audio": _audio_encoder,
}
