"""Loading an official state dict into our model, and writing it back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from transmamba._checkpoint import FLOATING, State, strip_prefixes
from transmamba.models.official.family import Family
from transmamba.models.pretrained import assign, weights_of


def build_and_load(
    family: Family, config: Mapping[str, Any], state: State, changes: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build the model of `config | changes` with the numbers of `state`.

    The checkpoint may differ in size from `config`, where its tensors show it: they are adapted. They keep their dtype
    and are copied.

    Raises:
        ValueError: names are missing or left over, shapes or dtypes are wrong; all are listed.
    """
    if family.upgrade_names is not None:
        state = family.upgrade_names(state)
    with torch.device("meta"):
        model = source = family.build(config, state)
        inferred = {} if family.infer_config is None else family.infer_config(model, state)
        if inferred:
            source = family.build({**config, **inferred}, state)
        if changes:
            model = family.build({**config, **changes}, state)
    ours = with_our_names(family, source, state)
    if source is not model and family.adapt is not None:
        ours = family.adapt(ours, source, model)
    assign(model, {name: value.clone() for name, value in ours.items()})
    return model


def rebuild(family: Family, config: Mapping[str, Any], state: State) -> nn.Module:
    """Build the empty model of `config` for a state with our names."""
    return family.build(config, {strip_prefixes(family.official_name(name)): value for name, value in state.items()})


def with_our_names(family: Family, model: nn.Module, state: State) -> State:
    """Return `state` with our names and our shapes.

    Raises:
        ValueError: names are missing or left over, shapes or dtypes are wrong; all are listed.
    """
    wanted = model.state_dict()
    names = {strip_prefixes(family.official_name(name)): name for name in wanted}
    problems = [f"missing: {name}" for name in names if name not in state]
    problems += [f"left over: {name}" for name in state if name not in names]
    for official, name in names.items():
        shape = family.shape(name, wanted[name].shape)
        if official in state and tuple(state[official].shape) != shape:
            problems.append(f"wrong shape: {official} is {tuple(state[official].shape)}, expected {shape}")
        if official in state and wanted[name].is_floating_point() and state[official].dtype not in FLOATING:
            problems.append(f"wrong dtype: {official} is {state[official].dtype}, expected floating numbers")
    if problems:
        raise ValueError(
            f"the state dict does not fit a {type(model).__name__} of these arguments:\n  " + "\n  ".join(problems)
        )
    return {name: state[official].reshape(wanted[name].shape) for official, name in names.items()}


def write_official(family: Family, model: nn.Module) -> State:
    """Return the state dict of `model` with the official names and shapes."""
    return {
        family.official_name(name): value.reshape(family.shape(name, value.shape))
        for name, value in weights_of(model).items()
    }
