"""Freeze the parts that others build on: public names, their signatures, and the names and shapes in state dicts.

`python -m tests.contracts.snapshot` writes all of it again, which is how to make a change on purpose.
"""

import inspect
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.contracts import backbones, test_text
from transmamba import distill
from transmamba import nn as tnn

PUBLIC = Path(__file__).parent / "public.json"
MODULE_KEYS = Path(__file__).parent / "module_keys.json"
PACKAGES = ("transmamba", *(f"transmamba.{name}" for name in ("data", "distill", "models", "nn", "ops", "transfer")))
MODULES: dict[str, Callable[[], Any]] = {
    "MambaMixer": lambda: tnn.MambaMixer(6, 3, directions=2, bias=True),
    "Mamba2Mixer": lambda: tnn.Mamba2Mixer(6, 3, head_dim=4, bias=True),
    "Mamba3Mixer": lambda: tnn.Mamba3Mixer(6, 4, head_dim=4),
    "SS2D": lambda: tnn.SS2D(6, 3),
    "PlainMambaMixer": lambda: tnn.PlainMambaMixer(6, 3),
    "Attention": lambda: tnn.Attention(6, 3, kv_heads=1, qk_norm="full", relative_grid=(2, 3)),
    "TransformerBlock": lambda: tnn.TransformerBlock(
        6, tnn.Attention(6, 2, causal=True), hidden_dim=5, gated=True, placement="sandwich"
    ),
    "CrossMamba": lambda: tnn.CrossMamba(6, 5, bidirectional=True),
    "FeatureCalibrator": lambda: distill.FeatureCalibrator(3, 5),
    "FeatureCalibrator wider": lambda: distill.FeatureCalibrator(5, 3),
    "LayerCalibrators": lambda: distill.LayerCalibrators([3, 4], 5),
}


def signature(value: Any) -> str:
    """Return names, kinds and defaults of the arguments; annotations are left to the type checkers."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    plain = []
    for parameter in found.parameters.values():
        default = parameter.default
        if callable(default) and default is not parameter.empty:
            default = _Named(default.__qualname__)
        plain.append(parameter.replace(annotation=parameter.empty, default=default))
    return str(found.replace(parameters=plain, return_annotation=found.empty))


class _Named:
    """Prints as a name, where a function would print its address."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def methods(kind: type) -> dict[str, str]:
    """Return the public methods and properties that the class itself or a base of ours defines."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("transmamba")]
    found = {name: value for base in reversed(ours) for name, value in vars(base).items() if not name.startswith("_")}
    return {
        name: "property" if isinstance(value, property) else signature(getattr(kind, name))
        for name, value in sorted(found.items())
        if isinstance(value, property | staticmethod | classmethod) or inspect.isfunction(value)
    }


def public() -> dict[str, Any]:
    """Describe every public name: by a signature, for a class with its methods, for anything else by its type."""
    names: dict[str, Any] = {}
    for package in PACKAGES:
        for name, value in sorted(vars(import_module(package)).items()):
            if name.startswith("_") or inspect.ismodule(value):
                continue
            if inspect.isclass(value):
                entry: Any = {"": signature(value), **methods(value)}
            else:
                entry = signature(value) if callable(value) else type(value).__name__
            names[f"{package}.{name}"] = entry
    return names


def module_keys() -> dict[str, dict[str, list[int]]]:
    """Name and shape of every tensor in the state dict of every module."""
    return {
        name: {key: list(value.shape) for key, value in build().state_dict().items()} for name, build in MODULES.items()
    }


SNAPSHOTS: dict[Path, Callable[[], dict[str, Any]]] = {
    PUBLIC: public,
    MODULE_KEYS: module_keys,
    backbones.SNAPSHOT: backbones.state_keys,
    test_text.SNAPSHOT: test_text.state_keys,
}

if __name__ == "__main__":
    for path, now in SNAPSHOTS.items():
        path.write_text(json.dumps(now(), indent=1) + "\n")
        print(f"wrote {path}")
