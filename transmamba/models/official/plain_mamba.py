"""Checkpoints of ChenhongyiYang/PlainMamba."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.official.family import Family, check_argument, read_config
from transmamba.models.official.resize import fresh_head, infer_grid_side, infer_num_classes
from transmamba.models.plain_mamba import PlainMamba
from transmamba.nn import PlainMambaMixer, RMSNorm, ScaledMixer
from transmamba.nn.embed import image_sides
from transmamba.nn.position import resize_position

Builder = Callable[[int], nn.Module]
_DEFAULTS = {
    "img_size": 224,
    "patch_size": 16,
    "in_channels": 3,
    "arch": None,
    "embed_dims": 192,
    "num_layers": 24,
    "num_convs_patch_embed": 2,
    "layers_with_dwconv": (),
    "layer_cfgs": {},
    "num_classes": 1000,
    "with_pos_embed": True,
    "drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "norm_cfg": {"type": "LN", "eps": 1e-6},
    "final_norm": True,
    "interpolate_mode": "bicubic",
}
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "L1": {"embed_dims": 192, "num_layers": 24, "num_convs_patch_embed": 1, "layers_with_dwconv": (0,)},
    "L2": {"embed_dims": 384, "num_layers": 24, "num_convs_patch_embed": 2, "layers_with_dwconv": ()},
    "L3": {"embed_dims": 448, "num_layers": 36, "num_convs_patch_embed": 2, "layers_with_dwconv": ()},
}
_IGNORED = ("out_indices", "patch_cfg", "pretrained", "init_cfg", "test_cfg", "convert_syncbn", "freeze_patch_embed")
_MIXER = {
    "d_state": 16,
    "expand": 2,
    "dt_rank": "auto",
    "conv_size": 7,
    "conv_bias": True,
    "bias": False,
    "init_layer_scale": None,
}
_MIXER_IGNORED = ("dt_init", "dt_min", "dt_max", "dt_scale", "dt_init_floor", "default_hw_shape")
_NAMES = (
    (r"^head\.", "head.fc."),
    (r"^norm\.", "ln1."),
    (r"^blocks\.", "layers."),
    (r"\.norm1\.", ".norm."),
    (r"\.local\.conv\.", ".dw.0."),
    (r"\.local\.norm\.", ".dw.1."),
    (r"\.mixer\.(mixer\.)?(ssm\.)?", ".mamba."),
    (r"\.dt_bias$", ".dt_proj.bias"),
    (r"\.direction_B$", ".direction_Bs"),
)


def build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Build the PlainMamba of the official constructor arguments, with the scans it was trained with.

    Raises:
        ValueError: an argument is not understood.
    """
    args = read_config(config, _DEFAULTS, ignored=_IGNORED)
    if args["arch"] is not None:
        check_argument("arch", args["arch"], _ARCHITECTURES)
        single = isinstance(args["layer_cfgs"], Mapping)  # a list of layers counts besides an architecture
        args |= {**_ARCHITECTURES[args["arch"]], "patch_size": 16} | ({"layer_cfgs": {}} if single else {})
    mixer, norm = _layers(args["layer_cfgs"], args["num_layers"])
    return PlainMamba(
        image_sides(args["img_size"]),
        args["patch_size"],
        in_chans=args["in_channels"],
        num_classes=args["num_classes"],
        dim=args["embed_dims"],
        depth=args["num_layers"],
        mixer=mixer,
        norm=norm,
        last_norm=_last_norm(args["norm_cfg"]) if args["final_norm"] else lambda dim: nn.Identity(),
        positions=args["with_pos_embed"],
        dropout=args["drop_rate"],
        num_stem_convs=args["num_convs_patch_embed"],
        conv_layers=tuple(args["layers_with_dwconv"]),
        drop_path=args["drop_path_rate"],
        resizing=_resizing(args["interpolate_mode"]),
    )


def _resizing(mode: Any) -> Literal["bicubic", "bilinear"]:
    if mode not in ("bicubic", "bilinear"):
        raise ValueError(
            f"interpolate_mode={mode!r}: expected bicubic or bilinear, because the official code resizes its table of "
            "positions with align_corners, which torch refuses for any other"
        )
    return mode


def _layers(configs: Any, depth: int) -> tuple[Any, Any]:
    """Return the builders of mixers and norms: one for all layers, or a list of them."""
    if isinstance(configs, Mapping):
        return _layer(configs)
    if not isinstance(configs, Sequence) or isinstance(configs, str):
        raise ValueError(f"layer_cfgs is a {type(configs).__name__}: expected one mapping, or a list of one per layer")
    if len(configs) != depth:
        raise ValueError(f"layer_cfgs has {len(configs)} entries: expected one for each of the {depth} layers")
    mixers, norms = zip(*(_layer(config) for config in configs), strict=True)
    return list(mixers), list(norms)


def _layer(config: Any) -> tuple[Builder, Builder]:
    """Return builders of a layer's mixer and norm; without a configuration, those of the released models."""
    if not isinstance(config, Mapping):
        raise ValueError(f"an entry of layer_cfgs is a {type(config).__name__}: expected a mapping")
    defaults = {"mamba_cfg": {"bias": True}, "use_rms_norm": False}
    layer = read_config(config, defaults, ignored=("drop_path_rate", "embed_dims", "with_dwconv"))
    given = read_config(layer["mamba_cfg"], _MIXER, ignored=_MIXER_IGNORED)
    gamma, side = given.pop("init_layer_scale"), given.pop("conv_size")
    build: Builder = partial(PlainMambaMixer, **given, d_conv=side, released_scan=True)
    norm = RMSNorm if layer["use_rms_norm"] else nn.LayerNorm
    return build if gamma is None else lambda dim: ScaledMixer(dim, build(dim), initial=float(gamma)), norm


def _last_norm(config: Mapping[str, Any]) -> Builder:
    given = read_config(config, {"eps": 1e-5}, {"type": "LN"}, ("requires_grad",))
    return partial(nn.LayerNorm, eps=given["eps"])


def official_name(name: str) -> str:
    """Map `blocks.0.mixer.ssm.dt_bias` to `backbone.layers.0.mamba.dt_proj.bias`, and so on."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name if name.startswith("head.") else f"backbone.{name}"


def infer_config(model: nn.Module, state: State) -> dict[str, Any]:
    """Infer another number of classes, or a position table of another square image."""
    model = cast(PlainMamba, model)
    inferred = infer_num_classes(model, state, "head.fc")
    side = infer_grid_side(state.get("pos_embed"), 0, model.grid[0] * model.grid[1])
    return inferred if side is None else {**inferred, "img_size": side * 2 * model.patch_embed.side}


def adapt(state: State, source: nn.Module, target: nn.Module) -> State:
    """Resize the position table."""
    source, target = cast(PlainMamba, source), cast(PlainMamba, target)
    if target.pos_embed is not None:
        state = {
            **state,
            "pos_embed": resize_position(state["pos_embed"], source.grid, target.grid, mode=target.resizing),
        }
    return fresh_head(state, target)


PLAIN_MAMBA = Family(PlainMamba, build, official_name, infer_config=infer_config, adapt=adapt)
