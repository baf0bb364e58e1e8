"""Checkpoints of MzeroMiko/VMamba, of the first version and of the second."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Size, Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.official.adapting import fresh_head, told_classes
from transmamba.models.official.family import Family, read_config
from transmamba.models.vmamba import VMamba, VMambaBlock, overlapping_stem
from transmamba.nn.scan2d import Scan2dMixer
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
}
# what every released model has
_FIXED = {
    "patch_size": 4,
    "ssm_act_layer": "silu",
    "mlp_act_layer": "gelu",
    "gmlp": False,
    "patch_norm": True,
    "posembed": False,
    "ssm_drop_rate": 0.0,
    "mlp_drop_rate": 0.0,
}
# the norm's layout changes no number, and any image size will do
_IGNORED = ("ssm_init", "norm_layer", "use_checkpoint", "imgsize", "img_size")
# kernels of the same scan; whether its output is gated
_GATED = {name + end: not end for name in ("v05", "v04", "v03", "v3") for end in ("", "_noz")} | {"v0": True}
_STEMS: dict[str, Callable[[int, int], nn.Module]] = {
    "v1": lambda in_chans, dim: nn.Sequential(ConvNorm(in_chans, dim, kernel_size=4, stride=4)),
    "v2": overlapping_stem,
}
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
    """The VMamba of the official constructor arguments.

    Raises:
        ValueError: an argument is not understood or has a value that no released model has.
    """
    args = read_config(config, _DEFAULTS, _FIXED, _IGNORED)
    for name, known in (
        ("forward_type", _GATED),
        ("downsample_version", _DOWNSAMPLES),
        ("patchembed_version", _STEMS),
    ):
        if args[name] not in known:
            raise ValueError(f"{name}={args[name]!r} is not built here: expected one of {', '.join(known)}")
    depths, dims = args["depths"], args["dims"]
    dims = tuple(dims * 2**i for i in range(len(depths))) if isinstance(dims, int) else tuple(dims)
    mixer = partial(
        Scan2dMixer,
        d_state=args["ssm_d_state"],
        d_conv=args["ssm_conv"],
        expand=args["ssm_ratio"],
        dt_rank=args["ssm_dt_rank"],
        conv_bias=args["ssm_conv_bias"],
        gated=_GATED[args["forward_type"]],
    )
    return VMamba(
        dims,
        tuple(depths),
        stem=_STEMS[args["patchembed_version"]](args["in_chans"], dims[0]),
        block=lambda dim, rate: VMambaBlock(dim, mixer(dim), mlp_ratio=args["mlp_ratio"], drop_path=rate),
        downsample=_DOWNSAMPLES[args["downsample_version"]],
        num_classes=args["num_classes"],
        drop_path=args["drop_path_rate"],
    )


def official_name(name: str) -> str:
    """`stages.0.blocks.1.mixer.ssm.dt_bias` -> `layers.0.blocks.1.op.dt_projs_bias`, and so on."""
    return _substitute(_NAMES, name)


def official_shape(name: str, shape: Size) -> tuple[int, ...]:
    """The directions of A_log and D are one after the other along the channels."""
    return (shape[0] * shape[1], *shape[2:]) if name.endswith((".A_log", ".D")) else tuple(shape)


def modernise(state: State) -> State:
    """Names of the first releases; linear layers kept as convolutions of one pixel."""
    return {
        _substitute(_OLD_NAMES, name): value[..., 0, 0]
        if name.endswith(("_proj.weight", "fc1.weight", "fc2.weight")) and value.shape[2:] == (1, 1)
        else value
        for name, value in state.items()
    }


def describe(model: nn.Module, state: State) -> dict[str, Any]:
    """Another number of classes."""
    return told_classes(model, state, "classifier.head")


def adapt(state: State, source: nn.Module, target: nn.Module) -> State:
    """Only the head can differ."""
    return fresh_head(state, target)


def _substitute(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


VMAMBA = Family(VMamba, build, official_name, official_shape, modernise, describe, adapt)
