"""Facts that transformers' configurations state alike: activations, rotary positions, windows."""

import math
from collections.abc import Callable, Mapping
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
VARYING = {
    "dynamic": "changes the frequencies with the length of the text",
    "longrope": "changes the frequencies with the length of the text",
}


def read_activation(config: Config, *keys: str, default: str) -> Activation:
    """Read the activation of the MLP.

    Raises:
        ValueError: it has no canonical form.
    """
    return canonical_activation(config(*(keys or ("hidden_act",)), default=default, fact="activation"))


def canonical_activation(name: str) -> Activation:
    """Return the canonical name of an activation.

    Raises:
        ValueError: it has no canonical form.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} has no canonical form: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_ropes(
    config: Config, depth: int, theta: float = 10000.0, layer_types: tuple[str, ...] = (), partial: bool = True
) -> tuple[Rope, ...]:
    """Read every layer's rotary positions, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    Args:
        config: the teacher's configuration.
        depth: number of layers.
        theta: base of the frequencies by default.
        layer_types: kind of every layer, where kinds have parameters of their own.
        partial: models of this type can rotate a part of every head.

    Raises:
        ValueError: positions are scaled in a way that has no canonical form.
    """
    parameters = config("rope_parameters", default={}, fact="ropes")
    if layer_types and set(layer_types) <= set(parameters):
        return tuple(_rope(config, parameters[kind], theta, partial) for kind in layer_types)
    return (_rope(config, parameters, theta, partial),) * depth


def read_kind_ropes(config: Config, kinds: tuple[str, ...], local: float | None = None) -> tuple[Rope, ...]:
    """Read the rotary positions of layers with a window and of layers without.

    Older configurations scale the positions of layers without a window alone.

    Args:
        config: the teacher's configuration.
        kinds: "full_attention" or "sliding_attention" for every layer.
        local: base of the frequencies of layers with a window, in those older configurations; the common one if None.
    """
    parameters = config("rope_parameters", default={}, fact="ropes")
    theta = config("rope_theta", default=10000.0)
    if not set(kinds) <= set(parameters):
        scaling = parameters or config("rope_scaling", default={})
        plain = {"rope_type": "default", "rope_theta": theta if local is None else local}
        parameters = {"full_attention": {"rope_theta": theta, **scaling}, "sliding_attention": plain}
    return tuple(_rope(config, parameters[kind], theta, partial=False) for kind in kinds)


def _rope(config: Config, parameters: Mapping[str, Any], theta: float, partial: bool) -> Rope:
    scaling = parameters or config("rope_scaling", default={})
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ROPES:
        reason = VARYING.get(kind, "has no canonical form")
        raise ValueError(f"rotary positions of type {kind!r} are refused: it {reason}; expected {', '.join(ROPES)}")
    rope = {key: value for key, value in scaling.items() if key not in ("type", "rope_type") and value is not None}
    rope.setdefault("rope_theta", config("rope_theta", "rotary_emb_base", default=theta))
    rope.setdefault("partial_rotary_factor", config("partial_rotary_factor", "rotary_pct", default=1.0))
    if not partial and rope["partial_rotary_factor"] != 1:
        raise ValueError(
            f"partial_rotary_factor is {rope['partial_rotary_factor']}, and models of this type rotate whole heads"
        )
    if kind in ("llama3", "yarn"):
        length = config("original_max_position_embeddings")
        if length is not None:
            rope["original_max_position_embeddings"] = length
        rope.setdefault("original_max_position_embeddings", config("max_position_embeddings"))
        if rope["original_max_position_embeddings"] is None:
            raise ValueError(f"rotary positions of type {kind!r} lack original_max_position_embeddings")
    if kind == "yarn":
        rope = _yarn(rope, config, nested=bool(parameters) and parameters is not config("rope_parameters"))
    return {"rope_type": kind, **rope}


def _yarn(rope: dict[str, Any], config: Config, nested: bool) -> dict[str, Any]:
    """Complete Yarn's parameters with the factor of the rotations, as transformers derives it."""
    rope = dict(rope)
    factor = rope.setdefault("factor", config("max_position_embeddings") / rope["original_max_position_embeddings"])
    scale, over = rope.pop("mscale", None), rope.pop("mscale_all_dim", None)
    wanted = _mscale(factor, scale) / _mscale(factor, over) if scale and over else _mscale(factor, 1)
    rope.setdefault("attention_factor", wanted)
    # transformers looks for `truncate` beside the kinds of layers, not inside one
    return {**rope, "truncate": True} if nested else rope


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1


def read_layer_types(config: Config, depth: int, sliding: Callable[[int], bool]) -> tuple[str, ...]:
    """Read every layer's kind of attention: `layer_types`, or the older rule `sliding`.

    Raises:
        ValueError: a kind has no canonical form, or their number is not that of the layers.
    """
    kinds = config("layer_types") or ["sliding_attention" if sliding(i) else "full_attention" for i in range(depth)]
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(f"layers of type {', '.join(sorted(unknown))} have no canonical form")
    if len(kinds) != depth:
        raise ValueError(f"layer_types names {len(kinds)} layers, the checkpoint has {depth}")
    return tuple(kinds)


def read_windows(
    config: Config, depth: int, sliding: Callable[[int], bool] = lambda layer: True
) -> tuple[int | None, ...]:
    """Read every layer's window: that of `layer_types` where they are given, else of layers that are `sliding`."""
    window = config("sliding_window", fact="windows" if not config.known else None)
    if window is None or config("use_sliding_window") is False:
        return ()
    kinds = read_layer_types(config, depth, sliding)
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
