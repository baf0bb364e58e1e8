"""Write the call that built a model as the JSON of its `config.json`, and read it back.

Only names in the registry are built, so that a file from a stranger cannot call anything else.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from reprlib import repr
from typing import Any

from torch import nn

from transmamba._checkpoint import State

PLAIN = (type(None), bool, int, float, str)

BUILDERS: dict[str, Callable[..., Any]] = {}  # filled by `register`
OFFICIAL: dict[str, Callable[[Mapping[str, Any], State], nn.Module]] = {}  # filled by `models.official`


def write_call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Write a call of a builder as JSON: `{"build": name, "arguments": {...}}`.

    Raises:
        ValueError: an argument is neither plain data nor a registered builder; the message has its place.
    """
    return {"build": name, "arguments": {key: _write(value, key) for key, value in arguments.items()}}


def write_family(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write an official family and its configuration as JSON: `{"family": name, "config": {...}}`.

    Raises:
        ValueError: the configuration is not plain data; the message has the place.
    """
    return {"family": name, "config": _write_plain(config, "config")}


def rebuild(saved: Mapping[str, Any], state: State, own: type) -> Any:
    """Build the model that a `config.json` describes.

    Args:
        saved: content of the `config.json`.
        state: the weights it is for, because those of an official family determine sizes that its configuration leaves
            open.
        own: class that is being loaded; it need not be registered.

    Raises:
        ValueError: the content was not written by `save_pretrained`, or names a builder that is not registered.
    """
    if "family" in saved:
        family, config = saved["family"], saved.get("config")
        if not isinstance(family, str) or family not in OFFICIAL or not isinstance(config, Mapping):
            raise ValueError(f"config.json names no official family and its config: {repr(saved)}")
        return OFFICIAL[family](config, state)
    try:
        builder, arguments = _read_call(saved, own)
    except RecursionError:
        raise ValueError("config.json is nested too deeply") from None
    return builder(**arguments)


def _write(value: Any, place: str) -> Any:
    """Write one argument as JSON; a builder, alone or in a `functools.partial`, becomes a call that lacks the rest."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [_write(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and "build" in value:
        raise ValueError(f"{place} is a dictionary with the key 'build', which config.json keeps for builders")
    if isinstance(value, partial) and value.args:
        raise ValueError(f"{place} is a functools.partial with positional arguments: pass them by keyword")
    builder, given = (value.func, value.keywords) if isinstance(value, partial) else (value, {})
    # a registered function may be passed as it was before `register` wrapped it
    pairs = ((known, getattr(known, "__wrapped__", None), name) for name, known in BUILDERS.items())
    name = next((name for known, inside, name in pairs if builder is known or builder is inside), None)
    if name is not None:
        return {"build": name, "arguments": {key: _write(item, f"{place}.{key}") for key, item in given.items()}}
    if isinstance(value, Mapping):
        return _write_plain(value, place)
    if inspect.isclass(builder) or inspect.isroutine(builder):
        raise ValueError(
            f"{place} is {builder.__qualname__}, which is not registered: decorate it with @transmamba.models.register"
            " before you build the model"
        )
    raise ValueError(
        f"{place} is of type {type(builder).__name__}: expected plain data, a registered class or function, or a"
        " functools.partial of one; register a function that builds it, or the model, from plain data with"
        " @transmamba.models.register"
    )


def _write_plain(value: Any, place: str) -> Any:
    """Copy numbers, texts, None, and lists and dictionaries of such."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [_write_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        raise ValueError(f"{place} is of type {type(value).__name__}: a dictionary may hold plain data only")
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise ValueError(f"{place} is a dictionary with the key {wrong[0]!r}: its keys must be strings")
    return {key: _write_plain(item, f"{place}[{key!r}]") for key, item in value.items()}


def _read(value: Any) -> Any:
    """Read one argument; lists become tuples, and calls become builders that await the rest of their arguments."""
    if isinstance(value, list):
        return tuple(_read(item) for item in value)
    if isinstance(value, Mapping) and "build" in value:
        builder, arguments = _read_call(value)
        return partial(builder, **arguments) if arguments else builder
    return value


def _read_call(call: Mapping[str, Any], own: type | None = None) -> tuple[Callable[..., Any], dict[str, Any]]:
    name, arguments = call.get("build"), call.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ValueError(f"config.json does not say what to build with which arguments: {repr(call)}")
    builder = own if own is not None and name == own.__name__ else BUILDERS.get(name)
    if builder is None:
        fault = "not" if own is None else f"neither {own.__name__} nor"
        raise ValueError(
            f"cannot build {name!r}: it is {fault} registered with transmamba.models.register; if it is yours, import"
            " the file that registers it first"
        )
    return builder, {key: _read(value) for key, value in arguments.items()}
