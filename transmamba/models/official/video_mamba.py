"""Checkpoints of OpenGVLab/VideoMamba: image and video classifiers, and the video side of the video-text models."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.official import vim_parts
from transmamba.models.official.family import Family, read_config
from transmamba.models.official.resize import fresh_head, infer_grid_side, infer_num_classes
from transmamba.models.official.vim_parts import read_mixer, read_norm
from transmamba.models.video_mamba import VideoMamba
from transmamba.models.video_text_mamba import VideoTextMamba
from transmamba.nn.embed import image_sides
from transmamba.nn.position import resize_position
from transmamba.ops.resize import inflate_frames

_DEFAULTS = {
    "img_size": 224,
    "patch_size": 16,
    "depth": 24,
    "embed_dim": 192,
    "channels": 3,
    "num_classes": 1000,
    "drop_path_rate": 0.1,
    "residual_in_fp32": True,
    "ssm_cfg": None,
    "drop_rate": 0.0,
    "fc_drop_rate": 0.0,
    "norm_epsilon": 1e-5,
    "rms_norm": True,
    "bimamba": True,
    "kernel_size": 1,
    "num_frames": None,
    "stride": None,
}
_IGNORED = ("fused_add_norm", "initializer_cfg", "use_checkpoint", "checkpoint_num", "device", "dtype")
_OFFICIAL_FRAMES = 8
_TEXT_FIXED = {"clip_return_layer": 1, "clip_student_return_interval": 1, "add_pool_norm": True, "pool_type": "cls+avg"}
_TEXT_IGNORED = ("clip_decoder_embed_dim", "clip_norm_type")


def build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Build the VideoMamba of the official constructor arguments; a clip model if they or the tensors have frames.

    Raises:
        ValueError: an argument is not understood, or the official model has none of that value.
    """
    if "pool_type" in config:
        return _build_text(config)
    frames = config.get("num_frames")
    if "num_frames" not in config and ("kernel_size" in config or "temporal_pos_embedding" in state):
        frames = _OFFICIAL_FRAMES
    return _build(config, frames)


def _build(config: Mapping[str, Any], frames: int | None) -> VideoMamba:
    args = read_config(config, _DEFAULTS, ignored=_IGNORED)
    return VideoMamba(
        image_sides(args["img_size"]),
        args["patch_size"],
        stride=args["stride"],
        num_frames=frames,
        tubelet=args["kernel_size"],
        in_chans=args["channels"],
        num_classes=args["num_classes"],
        dim=args["embed_dim"],
        depth=args["depth"],
        mixer=read_mixer(args["ssm_cfg"], "v2" if args["bimamba"] else "none", average=False),
        norm=read_norm(args["rms_norm"], args["norm_epsilon"]),
        dropout=args["drop_rate"],
        head_dropout=args["fc_drop_rate"],
        drop_path=args["drop_path_rate"],
        float32_residual=args["residual_in_fp32"],
    )


def _build_text(config: Mapping[str, Any]) -> nn.Module:
    encoder = {name: value for name, value in config.items() if name in _DEFAULTS or name in _IGNORED}
    own = {name: value for name, value in config.items() if name not in encoder}
    args = read_config(own, {"clip_output_dim": 768}, _TEXT_FIXED, _TEXT_IGNORED)
    frames = config.get("num_frames", _OFFICIAL_FRAMES)
    return VideoTextMamba(_build({**encoder, "num_classes": 0}, frames), args["clip_output_dim"])


def official_name(name: str) -> str:
    """Map names as Vim does, and `temporal_pos_embed`; the final norm of a video-text model is `norm`."""
    if name.startswith("encoder."):
        return official_name(name.removeprefix("encoder.")).replace("norm_f.", "norm.")
    if name.startswith("decoder."):
        return name.replace("decoder.", "clip_decoder.0.")
    return vim_parts.official_name(name).replace("temporal_pos_embed", "temporal_pos_embedding")


def infer_config(model: nn.Module, state: State) -> dict[str, Any]:
    """Infer another number of classes or frames, a position table of another square image, images instead of clips."""
    if not isinstance(model, VideoMamba):
        return {}
    inferred, (rows, columns) = infer_num_classes(model, state), model.grid[-2:]
    patches, frames = state.get("patch_embed.proj.weight"), state.get("temporal_pos_embedding")
    side = infer_grid_side(state.get("pos_embed"), 1, rows * columns)
    if side is not None and patches is not None:
        stride = getattr(model.patch_embed, "stride", patches.shape[-1])
        inferred["img_size"] = (side - 1) * stride + patches.shape[-1]
    if patches is not None and patches.dim() == 4 and model.temporal_pos_embed is not None:
        inferred["num_frames"] = None
    elif frames is not None and model.temporal_pos_embed is not None and frames.shape[1] != model.grid[0]:
        inferred["num_frames"] = frames.shape[1] * model.patch_embed.sides[0]
    return inferred


def adapt(state: State, source: nn.Module, target: nn.Module) -> State:
    """Resize the position tables; an image model becomes a clip model with one frame per tubelet."""
    source, target = cast(VideoMamba, source), cast(VideoMamba, target)
    state = dict(state)
    patches = resize_position(state["pos_embed"][:, 1:], source.grid[-2:], target.grid[-2:])
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], patches], 1)
    if target.temporal_pos_embed is not None:
        if source.temporal_pos_embed is None:
            kernel = state["patch_embed.proj.weight"]
            frames = target.patch_embed.sides[0]
            state["patch_embed.proj.weight"] = inflate_frames(kernel.unsqueeze(2), frames, 2)
            state["temporal_pos_embed"] = kernel.new_zeros(target.temporal_pos_embed.shape)
        else:
            table = state["temporal_pos_embed"]
            state["temporal_pos_embed"] = resize_position(table, source.grid[:1], target.grid[:1])
    return fresh_head(state, target)


VIDEO_MAMBA = Family(VideoMamba, build, official_name, infer_config=infer_config, adapt=adapt)
VIDEO_TEXT_MAMBA = Family(VideoTextMamba, build, official_name)
