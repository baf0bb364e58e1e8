"""Mamba, Mamba-2 and FalconMamba checkpoints as `transformers` writes them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from transmamba._checkpoint import LazyTensors, indexed_files, load_json, read_checkpoint
from transmamba._typing import check_sizes
from transmamba.models.builders import record, register
from transmamba.models.config import write_call
from transmamba.models.mamba_lm import MambaLM
from transmamba.models.official.load import build_and_load
from transmamba.models.official.mamba import MAMBA_FAMILIES, build_lm
from transmamba.nn import Mamba2Mixer, MambaMixer, UnitRMSNorm

REQUIRED = ("hidden_size", "num_hidden_layers", "vocab_size", "state_size")
REQUIRED_OF = {"mamba2": ("head_dim", "n_groups")}
TIED_BY_DEFAULT = {"mamba": True, "falcon_mamba": True, "mamba2": False}


def from_hf(config: Mapping[str, Any] | str | Path, state_dict: Mapping[str, Tensor] | None = None) -> MambaLM:
    """Build the language model of a checkpoint of `transformers`.

    Its `hidden_states` are `(*Features.layers, Features.last)`: entry i is the stream after block i, the last one
    follows the final norm, and the embedding is left out. The `hidden_states` of a ViT or a LLaMA in `transformers`
    begin with the embedding, so that entry i + 1 follows block i.

    Args:
        config: the content of config.json, or the folder that `save_pretrained` wrote.
        state_dict: the weights, if `config` is no folder; without them the model is a new one.

    Raises:
        ValueError: the model type is none of `mamba`, `mamba2` and `falcon_mamba`, the configuration lacks an entry or
            asks for something else than SiLU, the weights do not fit it, or a file is damaged or names files elsewhere.
        FileNotFoundError: the folder lacks a file.
    """
    if isinstance(config, (str, Path)):
        folder = Path(config)
        files = indexed_files(folder) or [folder / "model.safetensors"]
        return from_hf(load_json(folder / "config.json"), LazyTensors(*files))
    kind = config.get("model_type")
    if kind not in TIED_BY_DEFAULT:
        raise ValueError(f"model_type must be one of {', '.join(TIED_BY_DEFAULT)}, got {kind!r}")
    missing = [name for name in (*REQUIRED, *REQUIRED_OF.get(kind, ())) if name not in config]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")
    check_sizes(hidden_size=config["hidden_size"])
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {config['hidden_act']!r}")
    official = {**_lm(config), "tie_embeddings": config.get("tie_word_embeddings", TIED_BY_DEFAULT[kind])}
    model = build_lm(official, {}) if state_dict is None else _load(official, state_dict)
    _set_norms(model, config)
    record(model, lambda: write_call("from_hf", {"config": config}))
    return model


@register("from_hf")
def _from_config(config: Mapping[str, Any]) -> MambaLM:
    """Build the model of a saved `build_config`, which never has a path."""
    if not isinstance(config, Mapping):
        raise ValueError(f"cannot build 'from_hf': config must be the content of a config.json, got {config!r}")
    return from_hf(config)


def _load(official: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> MambaLM:
    state = {
        ("embedding.weight" if name == "embeddings.weight" else name): value
        for name, value in read_checkpoint(state_dict).items()
    }
    if official["tie_embeddings"] and "embedding.weight" in state:
        state["lm_head.weight"] = state["embedding.weight"]
    return cast(MambaLM, build_and_load(MAMBA_FAMILIES["mamba_lm"], official, state))


def _lm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of mamba_ssm's language model."""
    return {
        "d_model": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "pad_vocab_size_multiple": 1,  # the padding is part of vocab_size
        "ssm_cfg": _mamba2(config) if config["model_type"] == "mamba2" else _mamba(config),
    }


def _mamba(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"]
    # FalconMamba's files have expand=16, but the intermediate size is the one that counts
    inner = config.get("intermediate_size", int(config.get("expand", 2) * width))
    check_sizes(intermediate_size=inner)
    return {
        "layer": "Mamba1",
        "d_state": config["state_size"],
        "d_conv": config.get("conv_kernel", 4),
        "expand": _ratio(inner, width),
        "dt_rank": config.get("time_step_rank", "auto"),
        "bias": config.get("use_bias", False),
        "conv_bias": config.get("use_conv_bias", True),
    }


def _ratio(inner: int, width: int) -> int | float:
    """Return the factor that multiplies `width` to give `inner`, rounded down."""
    if inner % width == 0:
        return inner // width
    ratio = inner / width
    return ratio if int(ratio * width) == inner else math.nextafter(ratio, math.inf)


def _mamba2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "layer": "Mamba2",
        "d_state": config["state_size"],
        "d_conv": config.get("conv_kernel", 4),
        "expand": config.get("expand", 2),
        "headdim": config["head_dim"],
        "ngroups": config["n_groups"],
        "dt_limit": tuple(_number(x) for x in config.get("time_step_limit", (0.0, float("inf")))),
        "bias": config.get("use_bias", False),
        "conv_bias": config.get("use_conv_bias", True),
    }


def _number(x: Any) -> float:
    """Read a number; transformers writes infinity as {"__float__": "Infinity"}."""
    return float(x["__float__"] if isinstance(x, Mapping) else x)


def _set_norms(model: MambaLM, config: Mapping[str, Any]) -> None:
    eps = config.get("layer_norm_epsilon", 1e-5)
    model.norm.eps = eps
    for block in model.blocks:
        block.norm1.eps = eps
        if isinstance(block.mixer, Mamba2Mixer):
            block.mixer.norm.eps = eps
        elif isinstance(block.mixer, MambaMixer) and config["model_type"] == "falcon_mamba":
            block.mixer.branches[0].ssm.parameter_norm = UnitRMSNorm(config.get("mixer_rms_eps", 1e-6))
