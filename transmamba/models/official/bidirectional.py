"""What Vim and VideoMamba name alike: blocks whose backward parameters have `_b` in their names."""

import re

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


def official_name(name: str) -> str:
    """`blocks.0.mixer.branches.1.ssm.A_log` -> `layers.0.mixer.A_b_log`, and so on."""
    if name == "norm.weight":
        return "norm_f.weight"
    name = re.sub(r"^blocks\.(\d+)\.", r"layers.\1.", name).replace(".norm1.", ".norm.")
    return _BRANCH.sub(lambda found: "mixer." + _LEAVES[found[2]].format(b="_b" if found[1] == "1" else ""), name)
