"""Checkpoints of ChenhongyiYang/PlainMamba."""

import re
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.official.adapting import fresh_head, told_classes, told_side
from transmamba.models.official.family import Family, read_config
from transmamba.models.plain_mamba import PlainMamba
from transmamba.nn.position import resize_position

_DEFAULTS = {
    "img_size": 224,
    "patch_size": 16,
    "in_channels": 3,
    "embed_dims": 192,
    "num_layers": 24,
    "num_convs_patch_embed": 2,
    "layers_with_dwconv": (),
    "layer_cfgs": {},
    "num_classes": 1000,
    "drop_path_rate": 0.0,
}
_IGNORED = ("arch", "out_indices", "drop_rate", "final_norm", "interpolate_mode", "patch_cfg", "pretrained", "init_cfg")
_MIXER = {"d_state": 16}
# what every released model has
_MIXER_FIXED = {"expand": 2, "conv_size": 7, "conv_bias": True, "bias": True, "dt_rank": "auto"}
_MIXER_IGNORED = ("dt_init", "dt_min", "dt_max", "dt_scale", "dt_init_floor", "default_hw_shape")
_NAMES = (
    (r"^head\.", "head.fc."),
    (r"^norm\.", "ln1."),
    (r"^blocks\.", "layers."),
    (r"\.norm1\.", ".norm."),
    (r"\.local\.conv\.", ".dw.0."),
    (r"\.local\.norm\.", ".dw.1."),
    (r"\.mixer\.(ssm\.)?", ".mamba."),
    (r"\.dt_bias$", ".dt_proj.bias"),
    (r"\.move_B$", ".direction_Bs"),
)


def build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The PlainMamba of the official constructor arguments, scanning as it was trained."""
    args = read_config(config, _DEFAULTS, ignored=_IGNORED)
    layer = read_config(args["layer_cfgs"], {"mamba_cfg": {}}, {"use_rms_norm": False}, ("drop_path_rate",))
    mixer = read_config(layer["mamba_cfg"], _MIXER, _MIXER_FIXED, _MIXER_IGNORED)
    size = args["img_size"]
    return PlainMamba(
        size if isinstance(size, int) else tuple(size),
        args["patch_size"],
        in_chans=args["in_channels"],
        num_classes=args["num_classes"],
        dim=args["embed_dims"],
        depth=args["num_layers"],
        d_state=mixer["d_state"],
        refinements=args["num_convs_patch_embed"],
        convolved=tuple(args["layers_with_dwconv"]),
        drop_path=args["drop_path_rate"],
        released_scan=True,
    )


def official_name(name: str) -> str:
    """`blocks.0.mixer.ssm.dt_bias` -> `backbone.layers.0.mamba.dt_proj.bias`, and so on."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name if name.startswith("head.") else f"backbone.{name}"


def describe(model: nn.Module, state: State) -> dict[str, Any]:
    """Another number of classes, or a position table of another square image."""
    model = cast(PlainMamba, model)
    told = told_classes(model, state, "head.fc")
    side = told_side(state.get("pos_embed"), 0, model.grid[0] * model.grid[1])
    return told if side is None else {**told, "img_size": side * 2 * model.patch_embed.side}


def adapt(state: State, source: nn.Module, target: nn.Module) -> State:
    """Resize the position table."""
    source, target = cast(PlainMamba, source), cast(PlainMamba, target)
    table = resize_position(state["pos_embed"], source.grid, target.grid)
    return fresh_head({**state, "pos_embed": table}, target)


PLAIN_MAMBA = Family(PlainMamba, build, official_name, describe=describe, adapt=adapt)
