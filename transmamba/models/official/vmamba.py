"""Checkpoints of MzeroMiko/VMamba, of the first version and of the second."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Size, Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.official.family import Family, check_argument, read_config
from transmamba.models.official.resize import fresh_head, infer_num_classes
from transmamba.models.vmamba import ORDERS, VMamba
from transmamba.models.vmamba_block import VMambaBlock
from transmamba.nn.norm import TokenBatchNorm
from transmamba.nn.ss2d import SS2D, Kind, SpatialNorm
from transmamba.nn.ss2d_variants import CascadeSS2D, HeadedSS2D
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
    "ssm_drop_rate": 0.0,
    "mlp_drop_rate": 0.0,
    "norm_layer": "ln",
}
# without positions any image size will do
_IGNORED = ("ssm_init", "use_checkpoint", "img_size")
# a layout changes no number
_NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {"ln": nn.LayerNorm, "ln2d": nn.LayerNorm, "bn": TokenBatchNorm}
_ACTIVATIONS = ("silu", "gelu", "relu", "sigmoid")
# kernels of the same scan, and scans along one row order only: four times forward, or twice from each end
_SCANS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("v0", "v01", "v02", "v03", "v04", "v05", "v2", "v3"), ORDERS),
    **dict.fromkeys(("v051d", "v31d"), ("raster",) * 4),
    **dict.fromkeys(("v052d", "v32d"), ("raster", "raster", "raster_reverse", "raster_reverse")),
    **dict.fromkeys(("v052dc", "v32dc"), ("raster", "raster_reverse", "column", "column_reverse")),
    "m0": ORDERS,
}
_MIXERS: dict[str, type[SS2D]] = {"v052dc": CascadeSS2D, "v32dc": CascadeSS2D, "m0": HeadedSS2D}
# scans that no trained model can have
_REFUSED = (
    (
        r"xv.*",
        "the official code fails on it, because it lays out the step sizes by tokens where its convolution and its "
        "scan expect channels, and no checkpoint was published",
    ),
    (r"v052d3.*", "its authors keep it for debugging, and no configuration of theirs trains it"),
    (r"m0(?!.*_noz(_oact)?(_no32)?$).*", "the official code of the gate fails: expected m0_noz"),
)
_NORMS: dict[str, Kind] = {
    "none": "none",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "dwconv3": "conv",
    "cnorm": "norm_conv",
}
_FORWARD = re.compile(r"(?P<scan>.+?)(_on(?P<norm>[a-z0-9]+))?(?P<gate>_nozact|_noz)?(?P<act>_oact)?(_no32)?")
_DOWNSAMPLES: dict[str, Callable[..., nn.Module]] = {
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
    (r"\.mixer\.conv2d\.map\.", ".op.conv2d.1."),
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
    args = read_config(config, _DEFAULTS, ignored=_IGNORED)
    norm = _norm(args, state)
    for name, known in (
        ("downsample_version", _DOWNSAMPLES),
        ("patchembed_version", ("v1", "v2")),
        ("ssm_act_layer", _ACTIVATIONS),
        ("mlp_act_layer", _ACTIVATIONS),
    ):
        check_argument(name, args[name], known, "is not built here")
    depths, dims = args["depths"], args["dims"]
    dims = tuple(dims * 2**i for i in range(len(depths))) if isinstance(dims, int) else tuple(dims)
    mixer, orders = _mixer(args)
    gated = args["gmlp"] and _is_gated(state)
    side = args["imgsize"] // args["patch_size"]
    return VMamba(
        dims,
        tuple(depths),
        stem=_stem(args, dims[0], norm),
        block=lambda dim, rate: VMambaBlock(
            dim,
            mixer(dim),
            mlp_ratio=args["mlp_ratio"],
            activation=args["mlp_act_layer"],
            gated=gated,
            drop_path=rate,
            norm=norm,
            mlp_dropout=args["mlp_drop_rate"],
        ),
        downsample=partial(_DOWNSAMPLES[args["downsample_version"]], norm=norm),
        orders=orders,
        grid=(side, side) if args["posembed"] else None,
        num_classes=args["num_classes"],
        drop_path=args["drop_path_rate"],
        norm=norm,
    )


def _norm(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> Callable[[int], nn.Module]:
    """Return a builder of norms from a width."""
    kind, scan = args["norm_layer"].lower(), args["forward_type"]
    check_argument("norm_layer", kind, _NORM_LAYERS)
    if kind != "bn" and any(name.endswith("running_mean") for name in state):
        raise ValueError(f"the checkpoint has batch norms, which norm_layer={kind!r} has not: expected 'bn'")
    first = scan.startswith(("m0", "v0")) and not scan.startswith(("v01", "v02", "v03", "v04", "v05"))
    if first and (kind == "bn" or (kind == "ln2d" and scan.startswith("m0"))):
        raise ValueError(f"norm_layer={kind!r}: the official code of forward_type={scan!r} runs with 'ln' only")
    return _NORM_LAYERS[kind]


def _mixer(args: Mapping[str, Any]) -> tuple[Callable[[int], SS2D], tuple[str, ...]]:
    """Return a builder of a block's mixer, and the orders that the mixer scans."""
    given = args["forward_type"]
    for pattern, why in _REFUSED:
        if re.fullmatch(pattern, given):
            raise ValueError(f"forward_type={given!r} is not built here: {why}")
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
    options["dropout"] = args["ssm_drop_rate"]
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
    return partial(_MIXERS.get(found["scan"], SS2D), **options), _SCANS[found["scan"]]


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Check whether the MLPs are gated: the newer official code takes the argument and ignores it."""
    first, second = (state.get(f"layers.0.blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    return first is not None and second is not None and len(first) == 2 * second.shape[1]


def _stem(args: Mapping[str, Any], dim: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    patch: int = args["patch_size"]
    options: dict[str, Any] = {"normed": args["patch_norm"], "norm": norm}
    if args["patchembed_version"] == "v1":
        return nn.Sequential(ConvNorm(args["in_chans"], dim, kernel_size=patch, stride=patch, **options))
    half: Callable[..., nn.Module] = partial(
        ConvNorm, kernel_size=patch // 2 + 1, stride=patch // 2, padding=1, **options
    )
    return nn.Sequential(half(args["in_chans"], dim // 2), nn.GELU(), half(dim // 2, dim))


def official_name(name: str) -> str:
    """Map `stages.0.blocks.1.mixer.ssm.dt_bias` to `layers.0.blocks.1.op.dt_projs_bias`, and so on."""
    return _substitute(_NAMES, name)


def official_shape(name: str, shape: Size) -> tuple[int, ...]:
    """Join the directions of A_log and D, which lie one after the other along the channels; those of heads are not."""
    by_channel = (name.endswith(".A_log") and len(shape) == 3) or (name.endswith(".D") and len(shape) == 2)
    return (shape[0] * shape[1], *shape[2:]) if by_channel else tuple(shape)


def upgrade_names(state: State) -> State:
    """Update names of other releases; flatten linear layers kept as convolutions, of one pixel or of all directions."""
    for grouped, stacked in (
        (".op.x_proj.weight", ".op.x_proj_weight"),
        (".op.dt_projs.weight", ".op.dt_projs_weight"),
    ):
        state = {
            name.replace(grouped, stacked): value.view(4, -1, *value.shape[1:2]) if name.endswith(grouped) else value
            for name, value in state.items()
        }
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


def infer_config(model: nn.Module, state: State) -> dict[str, Any]:
    """Infer another number of classes."""
    return infer_num_classes(model, state, "classifier.head")


def adapt(state: State, source: nn.Module, target: nn.Module) -> State:
    """Replace the head, the only part that can differ."""
    return fresh_head(state, target)


def _substitute(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


VMAMBA = Family(VMamba, build, official_name, official_shape, upgrade_names, infer_config, adapt)
