"""Facts that transformers' configurations state alike: activations, rotary positions, windows."""

from collections.abc import Mapping
from typing import Any

from transmamba.transfer.teachers.architecture import Activation, Rope
from transmamba.transfer.teachers.checkpoint import Config

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}
ROPES = ("default", "linear", "llama3", "yarn")


def read_activation(config: Config, *keys: str, default: str) -> Activation:
    """The activation of the MLP.

    Raises:
        ValueError: it has no canonical form.
    """
    name = config(*(keys or ("hidden_act",)), default=default, fact="activation")
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} has no canonical form: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_ropes(
    config: Config, depth: int, theta: float = 10000.0, layer_types: tuple[str, ...] = ()
) -> tuple[Rope, ...]:
    """Rotary positions of every layer, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    Args:
        config: the teacher's configuration.
        depth: number of layers.
        theta: base of the frequencies by default.
        layer_types: kind of every layer, where kinds have parameters of their own.

    Raises:
        ValueError: positions are scaled in a way that has no canonical form.
    """
    parameters = config("rope_parameters", default={}, fact="ropes")
    if layer_types and set(layer_types) <= set(parameters):
        return tuple(_rope(config, parameters[kind], theta) for kind in layer_types)
    return (_rope(config, parameters, theta),) * depth


def _rope(config: Config, parameters: Mapping[str, Any], theta: float) -> Rope:
    scaling = parameters or config("rope_scaling", default={})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPES:
        raise ValueError(f"rotary positions of type {kind!r} have no canonical form: expected {', '.join(ROPES)}")
    rope = {key: value for key, value in scaling.items() if key not in ("type", "rope_type") and value is not None}
    rope.setdefault("rope_theta", config("rope_theta", default=theta))
    partial = config("partial_rotary_factor", "rotary_pct", default=1.0)
    rope.setdefault("partial_rotary_factor", partial)
    if kind in ("llama3", "yarn"):
        rope.setdefault("original_max_position_embeddings", config("max_position_embeddings"))
    return {"rope_type": kind, **rope}


def read_windows(config: Config, depth: int) -> tuple[int | None, ...]:
    """The window of every layer: `layer_types` where they are given, else `sliding_window` for all layers."""
    window = config("sliding_window", fact="windows" if not config.known else None)
    kinds = config("layer_types")
    if window is None or config("use_sliding_window") is False:
        return ()
    if kinds is None:
        return (int(window),) * depth
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown or len(kinds) != depth:
        raise ValueError(f"layers of type {', '.join(sorted(unknown)) or len(kinds)} have no canonical form")
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
