"""A backbone with other mixers in some of its layers, and all its other weights."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from transmamba._typing import typed
from transmamba.models.config import BUILDERS, rebuild, write_call
from transmamba.models.pretrained import Pretrained

M = TypeVar("M", bound=nn.Module)


@typed
def replace_mixers(model: M, mixers: Mapping[int, Callable[..., nn.Module]], **options: Any) -> M:
    """Build a backbone again with other mixers in some layers; all other weights are copies.

    The new mixers have their random start, so set the seed before; `transfer.fit_layers` solves their readouts. The
    result is saved and loaded like any other model.

    Args:
        model: a model built with `mixer=`, such as a `MambaLM` or a `ViT`, also from `from_transformer`.
        mixers: layer -> builder, called with the width: `MambaMixer`, or a `functools.partial` of it.
        options: other arguments of the model that change along, such as the `orders` and `prefix_scan` of a `ViT`; none
            that changes a weight.

    Raises:
        ValueError: the model takes no mixers, does not know how it was built, or a layer does not exist; an option is
            unknown, or changes the weights.

    Example:
        >>> from transmamba.models import MambaLM
        >>> from transmamba.nn import Mamba2Mixer
        >>> from functools import partial
        >>> hybrid = replace_mixers(MambaLM(11, 8, depth=2), {1: partial(Mamba2Mixer, d_state=4, head_dim=4)})
        >>> [type(block.mixer).__name__ for block in hybrid.blocks]
        ['MambaMixer', 'Mamba2Mixer']
    """
    saved: dict[str, Any] | None = model.build_config if isinstance(model, Pretrained) else None
    builder = None if saved is None else BUILDERS.get(saved.get("build", ""))
    parameters = {} if builder is None else inspect.signature(builder).parameters
    if saved is None or "mixer" not in parameters:
        raise ValueError(f"{type(model).__name__} was not built with mixer=..., or does not know how it was built")
    blocks: Any = model.blocks
    arguments, depth = dict(saved["arguments"]), len(blocks)
    if wrong := [layer for layer in mixers if not 0 <= layer < depth]:
        raise ValueError(f"layer {wrong[0]} does not exist: expected 0 to {depth - 1}")
    if unknown := sorted({*options} - {*parameters} | {"mixer"} & {*options}):
        raise ValueError(f"{saved['build']} takes no option {unknown[0]!r}: expected some of {sorted(parameters)}")
    old = arguments.get("mixer") or _default(parameters, arguments)
    arguments |= write_call("", options)["arguments"]
    written = write_call("", {"mixer": list(mixers.values())})["arguments"]["mixer"]
    each = list(old) if isinstance(old, list) else [old] * depth
    for layer, mixer in zip(mixers, written, strict=True):
        each[layer] = mixer
    weight = next(model.parameters())
    with torch.device(weight.device):
        new = rebuild({**saved, "arguments": {**arguments, "mixer": each}}, {}, type(model))
    new = new.to(weight.dtype).train(model.training)
    fresh = tuple(f"blocks.{layer}.{name}." for layer in mixers for name in ("mixer", "attn"))
    known = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(fresh)}
    ours = {name: tensor for name, tensor in new.state_dict().items() if not name.startswith(fresh)}
    for name in sorted(known.keys() | ours.keys()):
        if name not in known or name not in ours or known[name].shape != ours[name].shape:
            raise ValueError(f"{', '.join(options)} would change the weight {name}: give options that change none")
    new.load_state_dict(known, strict=False)
    return new


def _default(parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]) -> Any:
    """Return the call that builds a mixer where the model was built without `mixer`."""
    default = parameters["mixer"].default
    if default is not None:
        return write_call("", {"mixer": default})["arguments"]["mixer"]
    heads = arguments.get("heads", parameters["heads"].default)
    return {"build": "Attention", "arguments": {"heads": heads}}
