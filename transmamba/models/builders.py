"""Registry of builders: create a model by name, list the names, and record how a model was built."""

import functools
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Self, TypeVar, cast, overload

from torch import nn

import transmamba.nn as parts
from transmamba._typing import typed
from transmamba.models.config import BUILDERS, write_call

B = TypeVar("B", bound=Callable[..., Any])


@overload
def register(builder: B) -> B: ...
@overload
def register(builder: str) -> Callable[[B], B]: ...
def register(builder: Any) -> Any:
    """Register a class or function, under its own name or, as `@register("name")`, under another one.

    `create` builds it by that name, and a `config.json` may name it: as the saved model itself, or as an argument, such
    as a mixer. A model that a registered function returns is saved as a call of that function. Register nothing that
    reads files or executes its arguments, because the author of a `config.json` chooses the arguments.

    Raises:
        TypeError: `builder` is neither a class, nor a function, nor a name.
        ValueError: something else is registered under that name.

    Example:
        >>> @register
        ... class Average(nn.Module):
        ...     def __init__(self, dim: int, window: int = 3) -> None:
        ...         super().__init__()
        ...         self.average = nn.AvgPool1d(window, 1)
        >>> create("Average", dim=8).average.kernel_size
        (3,)
    """
    return partial(_add, builder) if isinstance(builder, str) else _add(None, builder)


@typed
def create(name: str, **options: Any) -> nn.Module:
    """Build a registered model, untrained.

    Args:
        name: one of `list_models()`, or a class or function registered with `register`.
        options: arguments of the builder that differ from its defaults.

    Raises:
        ValueError: the name is not registered.

    Example:
        >>> create("vim_tiny", num_classes=5).head.out_features
        5
    """
    if name not in BUILDERS:
        close = get_close_matches(name, BUILDERS, 3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"unknown model {name!r}: {hint}transmamba.models.list_models() has all names")
    return BUILDERS[name](**options)


@typed
def list_models(pattern: str = "*") -> list[str]:
    """List the registered models that `create` builds without further arguments.

    Args:
        pattern: a wildcard pattern that the names match.

    Example:
        >>> list_models("vim_t*")
        ['vim_tiny', 'vim_tiny_stride8']
    """
    return sorted(name for name, builder in BUILDERS.items() if fnmatchcase(name, pattern) and _is_size(builder))


class Recorded:
    """Base of models that know the call they were built by: of their class, or of a registered function around it.

    Attributes:
        build_config: content of the `config.json` from which the model is built again; None if an argument cannot be
            written.
    """

    build_config: dict[str, Any] | None
    _unwritten = "its arguments were not recorded"

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments."""
        model = super().__new__(cls)
        # copying and unpickling pass no arguments, and restore `build_config` themselves
        bound = inspect.signature(cls.__init__).bind_partial(model, *args, **kwargs)
        bound.arguments.pop(next(iter(bound.arguments)))  # the model itself
        record(model, lambda: write_call(cls.__name__, _by_name(bound)))
        return model


def record(model: Recorded, write: Callable[[], dict[str, Any]]) -> None:
    """Record how a model is built again, as `write_call` or `write_family` writes it, or why that cannot be written."""
    try:
        model.__dict__["build_config"] = write()
    except ValueError as error:
        model.__dict__["build_config"], model.__dict__["_unwritten"] = None, str(error)


def _add(name: str | None, builder: B) -> B:
    if not (inspect.isclass(builder) or inspect.isroutine(builder)):
        raise TypeError(f"register takes a class, a function or a name, got {builder!r}")
    name = name or builder.__name__
    known = BUILDERS.get(name, builder)
    # a notebook cell that runs again defines its class again
    if (known.__module__, known.__qualname__) != (builder.__module__, builder.__qualname__):
        raise ValueError(
            f"{name!r} is registered already, for {known.__module__}.{known.__qualname__}: choose another name with"
            ' @register("...")'
        )
    BUILDERS[name] = builder if inspect.isclass(builder) else _recording(name, builder)
    return cast(B, BUILDERS[name])


def _recording(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that a model it returns is recorded as a call of it."""

    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Any:
        model = function(*args, **kwargs)
        if isinstance(model, Recorded):
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()  # a later version may have others
            record(model, lambda: write_call(name, _by_name(bound)))
        return model

    return build


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return arguments under the names by which they can be passed again."""
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is not inspect.Parameter.VAR_POSITIONAL:
            named.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        elif value:
            raise ValueError(f"*{name} has arguments without names: give each of them a name")
    return named


def _is_size(builder: Callable[..., Any]) -> bool:
    """Check whether a builder is a function that needs no arguments."""
    if inspect.isclass(builder):
        return False
    parameters = inspect.signature(builder).parameters.values()
    return all(p.kind is p.VAR_KEYWORD or p.default is not p.empty for p in parameters)


for _part in vars(parts).values():
    if inspect.isclass(_part) and issubclass(_part, nn.Module):
        register(_part)
