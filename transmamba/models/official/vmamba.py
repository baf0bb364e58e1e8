"""Checkpoints of MzeroMiko/VMamba, of the first version and of the second."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Size, Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.official.adapting import fresh_head, told_classes
from transmamba.models.official.family import Family, read_config
from transmamba.models.vmamba import ORDERS, VMamba, VMambaBlock
from transmamba.nn.scan2d import Kind, Scan2dMixer, SpatialNorm
from transmamba.nn.stem import ConvNorm, PatchMerging

_DEFAULTS = {
    "in_chans": 3,
    "num_classes": 1000,
    "depths": (2, 2, 9, 2),
    "dims": (96, 192, 384, 768),
    "ssm_d_state": 16,
    "ssm_ratio": 2.0,
    "ssm_dt_rank": "auto",
    "ssm_conv": 3,
    "ssm_conv_bias": True,
    "forward_type": "v05",
    "mlp_ratio": 4.0,
    "drop_path_rate": 0.1,
    "downsample_version": "v2",
    "patchembed_version": "v1",
    "patch_size": 4,
    "patch_norm": True,
    "ssm_act_layer": "silu",
    "mlp_act_layer": "gelu",
    "gmlp": False,
    "posembed": False,
    "imgsize": 224,
}
_FIXED = {"ssm_drop_rate": 0.0, "mlp_drop_rate": 0.0}
# a layout changes no number, and without positions any image size will do
_IGNORED = ("ssm_init", "norm_layer", "use_checkpoint", "img_size")
_ACTIVATIONS = ("silu", "gelu", "relu", "sigmoid")
# kernels of the same scan, and scans along one row order only: four times forward, or twice from each end
_SCANS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("v0", "v01", "v02", "v03", "v04", "v05", "v2", "v3"), ORDERS),
    **dict.fromkeys(("v051d", "v31d"), ("raster",) * 4),
    **dict.fromkeys(("v052d", "v32d"), ("raster", "raster", "raster_reverse", "raster_reverse")),
}
_NORMS: dict[str, Kind] = {
    "none": "none",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "dwconv3": "conv",
    "cnorm": "norm_conv",
}
_FORWARD = re.compile(r"(?P<scan>.+?)(_on(?P<norm>[a-z0-9]+))?(?P<gate>_nozact|_noz)?(?P<act>_oact)?(_no32)?")
_DOWNSAMPLES: dict[str, Callable[[int, int], nn.Module]] = {
    "v1": PatchMerging,
    "v2": partial(ConvNorm, kernel_size=2, stride=2),
    "v3": partial(ConvNorm, kernel_size=3, stride=2),
}
_NAMES = (
    (r"^(norm|head)\.", r"classifier.\1."),
    (r"^patch_embed\.2\.channel_norm\.", "patch_embed.7."),
    (r"^patch_embed\.2\.conv\.", "patch_embed.5."),
    (r"^patch_embed\.0\.channel_norm\.", "patch_embed.2."),
    (r"^patch_embed\.0\.conv\.", "patch_embed.0."),
    (r"^stages\.", "layers."),
    (r"\.downsample\.conv\.", ".downsample.1."),
    (r"\.downsample\.channel_norm\.", ".downsample.3."),
    (r"\.norm1\.", ".norm."),
    (r"\.out_norm\.norm\.", ".out_norm.0."),
    (r"\.out_norm\.conv\.", ".out_norm.1."),
    (r"\.out_norm\.norm_conv\.", ".out_norm.2."),
    (r"\.mixer\.", ".op."),
    (r"\.ssm\.x_proj$", ".x_proj_weight"),
    (r"\.ssm\.dt_proj$", ".dt_projs_weight"),
    (r"\.ssm\.dt_bias$", ".dt_projs_bias"),
    (r"\.ssm\.A_log$", ".A_logs"),
    (r"\.ssm\.D$", ".Ds"),
)
_OLD_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(norm|head)\.", r"classifier.\1."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
)


def build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Build the VMamba of the official constructor arguments.

    Raises:
        ValueError: an argument is unknown, or its value is not supported here.
    """
    args = read_config(config, _DEFAULTS, _FIXED, _IGNORED)
    if any(name.endswith("running_mean") for name in state):
        raise ValueError("the checkpoint has batch norms: expected those of norm_layer 'ln' or 'ln2d'")
    for name, known in (
        ("downsample_version", _DOWNSAMPLES),
        ("patchembed_version", ("v1", "v2")),
        ("ssm_act_layer", _ACTIVATIONS),
        ("mlp_act_layer", _ACTIVATIONS),
    ):
        if args[name] not in known:
            raise ValueError(f"{name}={args[name]!r} is not built here: expected one of {', '.join(known)}")
    depths, dims = args["depths"], args["dims"]
    dims = tuple(dims * 2**i for i in range(len(depths))) if isinstance(dims, int) else tuple(dims)
    mixer, orders = _mixer(args)
    gated = args["gmlp"] and _is_gated(state)
    side = args["imgsize"] // args["patch_size"]
    return VMamba(
        dims,
        tuple(depths),
        stem=_stem(args, dims[0]),
        block=lambda dim, rate: VMambaBlock(
            dim,
            mixer(dim),
            mlp_ratio=args["mlp_ratio"],
            activation=args["mlp_act_layer"],
            gated=gated,
            drop_path=rate,
        ),
        downsample=_DOWNSAMPLES[args["downsample_version"]],
        orders=orders,
        grid=(side, side) if args["posembed"] else None,
        num_classes=args["num_classes"],
        drop_path=args["drop_path_rate"],
    )


def _mixer(args: Mapping[str, Any]) -> tuple[Callable[[int], Scan2dMixer], tuple[str, ...]]:
    """Return a builder of a block's mixer, and the orders that the mixer scans."""
    given = args["forward_type"]
    found = _FORWARD.fullmatch(given)
    if not found or found["scan"] not in _SCANS or found["norm"] not in (None, *_NORMS):
        raise ValueError(
            f"forward_type={given!r} is not built here: expected one of {', '.join(_SCANS)}, then possibly _on"
            f"{', _on'.join(_NORMS)}, then _noz or _nozact, then _oact"
        )
    first = found["scan"] == "v0"
    if first and given != "v0":
        raise ValueError(f"forward_type={given!r} is unknown: the first version, v0, has no suffixes")
    options = dict(d_state=args["ssm_d_state"], expand=args["ssm_ratio"], dt_rank=args["ssm_dt_rank"])
    if not first:  # which leaves these as they are
        options |= dict(
            d_conv=args["ssm_conv"] if args["ssm_conv"] > 1 else None,
            conv_bias=args["ssm_conv_bias"],
            activation=args["ssm_act_layer"],
            gated=found["gate"] != "_noz",
            gate_activation=found["gate"] != "_nozact",
            out_activation=found["act"] is not None,
        )
    if found["norm"] is not None:
        options["out_norm"] = partial(SpatialNorm, kind=_NORMS[found["norm"]])
    return partial(Scan2dMixer, **options), _SCANS[found["scan"]]


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Check whether the MLPs are gated: the newer official code takes the argument and ignores it."""
    first, second = (state.get(f"layers.0.blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    return first is not None and second is not None and len(first) == 2 * second.shape[1]


def _stem(args: Mapping[str, Any], dim: int) -> nn.Module:
    patch, normed = args["patch_size"], args["patch_norm"]
    if args["patchembed_version"] == "v1":
        return nn.Sequential(ConvNorm(args["in_chans"], dim, kernel_size=patch, stride=patch, normed=normed))
    half = partial(ConvNorm, kernel_size=patch // 2 + 1, stride=patch // 2, padding=1, normed=normed)
    return nn.Sequential(half(args["in_chans"], dim // 2), nn.GELU(), half(dim // 2, dim))


def official_name(name: str) -> str:
    """Map `stages.0.blocks.1.mixer.ssm.dt_bias` to `layers.0.blocks.1.op.dt_projs_bias`, and so on."""
    return _substitute(_NAMES, name)


def official_shape(name: str, shape: Size) -> tuple[int, ...]:
    """Join the directions of A_log and D, which lie one after the other along the channels."""
    return (shape[0] * shape[1], *shape[2:]) if name.endswith((".A_log", ".D")) else tuple(shape)


def modernise(state: State) -> State:
    """Update names of other releases; flatten linear layers that were kept as convolutions of one pixel."""
    merged = {name.removesuffix("2.weight") for name in state if name.endswith(".downsample.2.weight")}
    for part in merged:  # patch merging as a list of modules
        moved = {f"{part}1.weight": "norm.weight", f"{part}1.bias": "norm.bias", f"{part}2.weight": "reduction.weight"}
        state = {part + moved[name] if name in moved else name: value for name, value in state.items()}
    state = {
        name.replace("out_norm.weight", "out_norm.1.weight") if value.dim() == 4 else name: value
        for name, value in state.items()
    }
    return {
        _substitute(_OLD_NAMES, name): value[..., 0, 0]
        if name.endswith(("_proj.weight", "fc1.weight", "fc2.weight", "reduction.weight")) and value.shape[2:] == (1, 1)
        else value
        for name, value in state.items()
    }


def describe(model: nn.Module, state: State) -> dict[str, Any]:
    """Infer another number of classes."""
    return told_classes(model, state, "classifier.head")


def adapt(state: State, source: nn.Module, target: nn.Module) -> State:
    """Replace the head, the only part that can differ."""
    return fresh_head(state, target)


def _substitute(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


VMAMBA = Family(VMamba, build, official_name, official_shape, modernise, describe, adapt)
