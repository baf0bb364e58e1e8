"""The blocks and language models of mamba_ssm."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from transmamba.models.mamba_lm import MambaLM, mamba_block
from transmamba.models.official.family import Family, read_config
from transmamba.nn import HeadSSM, Mamba2Mixer, Mamba3Mixer, MambaMixer

# arguments that affect only how the numbers are initialised or computed
IGNORED = (
    "dt_min",
    "dt_max",
    "dt_init",
    "dt_scale",
    "dt_init_floor",
    "A_init_range",
    "use_fast_path",
    "use_mem_eff_path",
    "layer_idx",
    "conv_init",
    "sequence_parallel",
    "device",
    "dtype",
)
MAMBA = {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "bias": False, "conv_bias": True}
MAMBA2 = {
    "d_state": 128,
    "d_conv": 4,
    "expand": 2,
    "headdim": 64,
    "ngroups": 1,
    "D_has_hdim": False,
    "norm_before_gate": False,
    "dt_limit": (0.0, float("inf")),
    "bias": False,
    "conv_bias": True,
    "chunk_size": 256,
    "d_ssm": None,
    "rmsnorm": True,
}
MAMBA3 = {"d_state": 128, "expand": 2, "headdim": 64, "ngroups": 1, "rope_fraction": 0.5}
LM = {
    "d_model": 2560,
    "n_layer": 64,
    "vocab_size": 50277,
    "d_intermediate": 0,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
    "ssm_cfg": {},
    "rms_norm": True,
}
LM_FIXED: dict[str, Any] = {"attn_layer_idx": [], "attn_cfg": {}}


def build_mamba(d_model: int, config: Mapping[str, Any]) -> MambaMixer:
    """Build the mixer of these official arguments."""
    found = read_config(config, MAMBA, ignored=IGNORED)
    return MambaMixer(d_model, found.pop("d_state"), **found)


def build_mamba2(d_model: int, config: Mapping[str, Any]) -> Mamba2Mixer:
    """Build the mixer of these official arguments."""
    c = read_config(config, MAMBA2, ignored=IGNORED)
    d_ssm = int(c["expand"] * d_model) if c["d_ssm"] is None else c["d_ssm"]
    ssm = HeadSSM(
        d_ssm // c["headdim"],
        c["headdim"],
        d_state=c["d_state"],
        groups=c["ngroups"],
        channel_skip=c["D_has_hdim"],
        dt_limit=tuple(c["dt_limit"]),
        chunk_size=min(c["chunk_size"], 64),  # changes no number; large chunks are for tensor cores
    )
    names = ("d_conv", "expand", "bias", "conv_bias", "d_ssm")
    mixer = Mamba2Mixer(d_model, **{name: c[name] for name in names}, normed=c["rmsnorm"], ssm=ssm)
    mixer.norm.norm_before_gate = c["norm_before_gate"]
    return mixer


def build_mamba3(d_model: int, config: Mapping[str, Any]) -> Mamba3Mixer:
    """Build the mixer of these official arguments, with the decay that mamba_ssm has had since June 2026."""
    fixed = {"is_mimo": False, "is_outproj_norm": False, "A_floor": 1e-4}
    c = read_config(config, MAMBA3, fixed, (*IGNORED, "mimo_rank", "chunk_size", "fuse_pregate_headwise_norm"))
    return Mamba3Mixer(
        d_model,
        c["d_state"],
        head_dim=c["headdim"],
        expand=c["expand"],
        groups=c["ngroups"],
        rotary_fraction=c["rope_fraction"],
    )


BUILDERS: dict[str, Callable[..., nn.Module]] = {"Mamba1": build_mamba, "Mamba2": build_mamba2, "Mamba3": build_mamba3}


def build_lm(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> MambaLM:
    """Build the language model of these official arguments."""
    c = read_config(config, LM, LM_FIXED, ("fused_add_norm", "residual_in_fp32"))
    ssm = dict(c["ssm_cfg"])
    layer = ssm.pop("layer", "Mamba1")
    if layer not in BUILDERS:
        raise ValueError(
            f"cannot build from these official arguments: layer={layer!r}: expected one of {', '.join(BUILDERS)}"
        )
    norm: Literal["rms", "layer"] = "rms" if c["rms_norm"] else "layer"
    return MambaLM(
        c["vocab_size"],
        c["d_model"],
        depth=c["n_layer"],
        mixer=partial(BUILDERS[layer], config=ssm),
        block=mamba_block(c["d_intermediate"], norm=norm),
        norm=norm,
        tied=c["tie_embeddings"],
        vocab_multiple=c["pad_vocab_size_multiple"],
    )


def _build_block(build: Any, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    return build(config["d_model"], {name: value for name, value in config.items() if name != "d_model"})


def mixer_name(name: str) -> str:
    """Return the official name of a tensor of either mixer.

    Raises:
        ValueError: the tensor belongs to a second direction, which the official mixers have not.
    """
    if name.startswith("branches.") and not name.startswith("branches.0."):
        raise ValueError(f"mamba_ssm has no name for {name}: its mixer has one direction")
    if name == "branches.0.ssm.dt_bias":
        return "dt_proj.bias"
    return name.removeprefix("branches.0.").removeprefix("ssm.")


def lm_name(name: str) -> str:
    """Return the official name of a tensor of the language model."""
    if name.startswith("blocks."):
        _, i, rest = name.split(".", 2)
        head, _, tail = rest.partition(".")
        head = "norm" if head == "norm1" else head
        return f"backbone.layers.{i}.{head}.{mixer_name(tail) if head == 'mixer' else tail}"
    part, _, leaf = name.partition(".")
    return {"embedding": "backbone.embedding.", "norm": "backbone.norm_f.", "head": "lm_head."}[part] + leaf


MAMBA_FAMILIES = {
    "mamba_lm": Family(MambaLM, build_lm, lm_name),
    "mamba_block": Family(MambaMixer, partial(_build_block, build_mamba), mixer_name),
    "mamba2_block": Family(Mamba2Mixer, partial(_build_block, build_mamba2), mixer_name),
    "mamba3_block": Family(Mamba3Mixer, partial(_build_block, build_mamba3), mixer_name),
}
