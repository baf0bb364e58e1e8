"""The shape check at the border of the library, and the checks that an annotation cannot express.

Signatures carry jaxtyping annotations. Checking every call would slow a deep network threefold and break
`torch.compile(fullgraph=True)`, so `typed` checks the outermost call only and nothing while compiling.

A call whose arguments have the shapes, dtypes and plain values of one that passed is not checked again: the check would
cost more than a small scan.

`TRANSMAMBA_CHECK` is read once, at import: `0` switches the check off, `all` checks every call, nested ones as well
(the test suite runs that way), anything else checks at the border.
"""

import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ParamSpec, TypeVar

import torch
from jaxtyping import jaxtyped
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")

CHECK = os.environ.get("TRANSMAMBA_CHECK", "1")
LARGEST = 2**31 - 1  # of a size: a larger one is a slip, and torch would speak of overflows
_REMEMBERED = 1000  # forms of calls per function
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_PLAIN = (type(None), bool, int, float, str)
_border = threading.local()


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Check the annotated shapes and types of `function` when it is called from outside the library.

    Raises:
        TypeError: on the call, if an argument or the result does not fit its annotation; the message names
            the parameter, the shape it has and the axes bound so far.
    """
    if CHECK == "0":
        return function

    @functools.cache
    def checked() -> Callable[P, R]:
        return jaxtyped(function, typechecker=_checker())

    passed: set[Any] = set()

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or (CHECK != "all" and getattr(_border, "crossed", False)):
            return function(*args, **kwargs)
        outermost = not getattr(_border, "crossed", False)
        form = None if CHECK == "all" else _form((args, *kwargs.items()))
        _border.crossed = True
        try:
            if form in passed:
                return function(*args, **kwargs)
            result = checked()(*args, **kwargs)
            if form is not None and len(passed) < _REMEMBERED:
                passed.add(form)
            return result
        except Exception as error:
            integer = _integer_masks(function, args, kwargs) if isinstance(error, TypeError) else None
            if integer is not None:
                raise TypeError(integer) from error
            if torch.jit.is_tracing() and not torch.compiler.is_exporting():
                raise NotImplementedError(_jit(function.__qualname__, "trace")) from error
            raise
        finally:
            _border.crossed = not outermost

    # torch.jit.script calls it first
    wrapper.__prepare_scriptable__ = functools.partial(refuse_script, function.__qualname__)  # type: ignore[attr-defined]
    # dynamo counts recompilations per code object, and every wrapper would share this one
    code = wrapper.__code__  # type: ignore[attr-defined]
    wrapper.__code__ = code.replace(co_name=function.__name__, co_qualname=function.__qualname__)  # type: ignore[attr-defined]
    return wrapper


@functools.cache
def _checker() -> Any:
    """Build the checker of annotations, on the first call, because it takes longer than importing this module."""
    from beartype import BeartypeConf, FrozenDict, beartype
    from beartype.vale import IsInstance

    # a whole number is a float, as for every type checker and for torch: weight_decay=0; a bool is a slip
    whole = Annotated[int, ~IsInstance[bool]]
    return beartype(conf=BeartypeConf(hint_overrides=FrozenDict({float: float | whole})))


def _integer_masks(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return what to do about masks of whole numbers, such as those of a tokenizer; None if there is none."""
    try:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        return None
    for name, value in given.items():
        if name.endswith("mask") and isinstance(value, Tensor) and value.dtype in _INTEGERS:
            dtype = str(value.dtype).removeprefix("torch.")
            return f"{name} is {dtype}, and masks are bool, True for a real token: pass {name}.bool()"
    return None


def refuse_script(name: str) -> None:
    """Raise NotImplementedError with the ways that replace torch.jit.script."""
    raise NotImplementedError(_jit(name, "script"))


def _jit(name: str, way: str) -> str:
    return (
        f"{name} is not made for torch.jit.{way}: use torch.export.export, torch.onnx.export(..., dynamo=True) or "
        "torch.compile"
    )


def _form(call: tuple[Any, ...]) -> Any:
    """Return the part of a call that the check depends on, as a key for lookup; None if it cannot be compared."""
    form = _form_of(call)
    try:
        hash(form)
    except TypeError:  # a size that is a symbol
        return None
    return form


def _form_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.__class__, value.dtype, value.shape
    if isinstance(value, _PLAIN):
        return value.__class__, value
    if isinstance(value, tuple | list):
        forms = [_form_of(item) for item in value]
        return None if None in forms else (value.__class__, *forms)
    # a module's parameters and settings are not in its signature
    return value.__class__ if isinstance(value, nn.Module) else None


def check_sizes(**sizes: int | None) -> None:
    """Refuse sizes below 1; None stands for a default.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is not between 1 and 2**31 - 1.
    """
    for name, size in sizes.items():
        if size is None:
            continue
        # a size that torch.export keeps open is a SymInt
        if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)):
            raise TypeError(f"{name} must be a whole number, got {size!r}")
        if not 1 <= size <= LARGEST:
            raise ValueError(f"{name} must be {'at least 1' if size < 1 else f'at most {LARGEST}'}, got {size}")


def scaled_size(size: int, ratio: float, name: str) -> int:
    """Multiply `size` by `ratio`, rounded down.

    Raises:
        ValueError: the result is not a size.
    """
    if not 1 <= size * ratio <= LARGEST:
        raise ValueError(f"{name}={ratio} of a width of {size} leaves no channel, or too many")
    return int(size * ratio)


def check_width(x: Tensor, width: int, name: str = "x", axis: int = -1) -> None:
    """Refuse a tensor of another width than a module was built for.

    Raises:
        ValueError: the widths differ.
    """
    if x.shape[axis] != width:
        raise ValueError(f"{name} has {x.shape[axis]} channels, the module was built for {width}")


def check_choice(name: str, value: object, choices: Iterable[object], rest: str = "") -> None:
    """Refuse a value that is none of `choices`; `rest` ends the message, for instance with another remedy.

    Raises:
        ValueError: it is another one.
    """
    known = list(choices)
    if value not in known:
        raise unknown_choice(name, value, known, rest)


def unknown_choice(name: str, value: object, choices: Iterable[object], rest: str = "") -> ValueError:
    """Return the error about a value that is none of `choices`."""
    *others, last = map(str, choices)
    listed = f"one of {', '.join(others)}, {last}" if len(others) > 2 else f"{', '.join(others)} or {last}"
    return ValueError(f"unknown {name} {value!r}: expected {listed}{rest}")
