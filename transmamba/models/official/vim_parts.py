"""Common parts of Vim and VideoMamba: mixers, norms, and names, in which `_b` marks the backward direction."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from transmamba.models.official.family import read_config
from transmamba.models.official.mamba import IGNORED, MAMBA
from transmamba.nn import LayerNorm, MambaMixer, RMSNorm, ScaledMixer, ThereAndBackMixer

_BRANCH = re.compile(r"mixer\.branches\.([01])\.(.+)")
_LEAVES = {
    "conv1d.weight": "conv1d{b}.weight",
    "conv1d.bias": "conv1d{b}.bias",
    "ssm.x_proj.weight": "x_proj{b}.weight",
    "ssm.dt_proj.weight": "dt_proj{b}.weight",
    "ssm.dt_bias": "dt_proj{b}.bias",
    "ssm.A_log": "A{b}_log",
    "ssm.D": "D{b}",
}


def read_mixer(
    ssm_cfg: Mapping[str, Any] | None, kind: str, *, average: bool, gamma: float | None = None, **own: Any
) -> Callable[[int], nn.Module]:
    """Return a function that builds a block's mixer from a width.

    Args:
        ssm_cfg: arguments of the official mixer.
        kind: "none" scans forward, "v1" also backward with decay rates of its own, "v2" with everything of its own.
        average: halve the sum of two directions.
        gamma: initial value of a scale of each output channel; None for no scale.
        own: arguments of the mixer that the model has itself.

    Raises:
        ValueError: an argument is not understood, or given twice; or the kind is unknown.
    """
    twice = sorted(own.keys() & (ssm_cfg or {}).keys())
    if twice:
        raise ValueError(f"{', '.join(twice)} in ssm_cfg: expected among the arguments of the model itself")
    arguments = {**read_config(ssm_cfg or {}, MAMBA, ignored=IGNORED), **own}
    if kind == "v1":
        build: Callable[[int], nn.Module] = partial(ThereAndBackMixer, **arguments)
    elif kind in ("none", "v2"):
        both = kind == "v2"
        build = partial(MambaMixer, directions=1 + both, average=average and both, **arguments)
    else:
        raise ValueError(f"bimamba_type={kind!r} is unknown: expected none, v1 or v2")
    return build if gamma is None else lambda dim: ScaledMixer(dim, build(dim), initial=float(gamma))


def read_norm(rms_norm: bool, eps: float) -> Callable[[int], nn.Module]:
    """Return a function that builds a norm from a width."""
    return partial(RMSNorm if rms_norm else LayerNorm, eps=eps)


def official_name(name: str) -> str:
    """Map `blocks.0.mixer.branches.1.ssm.A_log` to `layers.0.mixer.A_b_log`, and so on."""
    name = re.sub(r"^blocks\.(\d+)\.(there|back)\.", _of_pair, name)
    name = re.sub(r"^norm\.", "norm_f.", name).replace(".mixer.mixer.", ".mixer.")
    name = re.sub(r"^blocks\.(\d+)\.", r"layers.\1.", name).replace(".norm1.", ".norm.")
    name = name.replace("mixer.back_A_log", "mixer.A_b_log")
    return _BRANCH.sub(lambda found: "mixer." + _LEAVES[found[2]].format(b="_b" if found[1] == "1" else ""), name)


def _of_pair(found: re.Match[str]) -> str:
    return f"blocks.{2 * int(found[1]) + (found[2] == 'back')}."
