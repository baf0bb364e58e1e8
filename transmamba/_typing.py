"""The shape check at the border of the library.

Signatures carry jaxtyping annotations. Checking every call would slow a deep network threefold and break
`torch.compile(fullgraph=True)`, so `typed` checks the outermost call only and nothing while compiling.

`TRANSMAMBA_CHECK` is read once, at import: `0` switches the check off, `all` checks nested calls as well
(the test suite runs that way), anything else checks at the border.
"""

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from beartype import beartype
from jaxtyping import jaxtyped

P = ParamSpec("P")
R = TypeVar("R")

CHECK = os.environ.get("TRANSMAMBA_CHECK", "1")
_border = threading.local()


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Check the annotated shapes and types of `function` when it is called from outside the library.

    Raises:
        TypeError: on the call, if an argument or the result does not fit its annotation; the message names
            the parameter, the shape it has and the axes bound so far.
    """
    if CHECK == "0":
        return function
    checked = jaxtyped(function, typechecker=beartype)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or (CHECK != "all" and getattr(_border, "crossed", False)):
            return function(*args, **kwargs)
        outermost = not getattr(_border, "crossed", False)
        _border.crossed = True
        try:
            return checked(*args, **kwargs)
        finally:
            _border.crossed = not outermost

    # dynamo counts recompilations per code object, and every wrapper would share this one
    code = wrapper.__code__  # type: ignore[attr-defined]
    wrapper.__code__ = code.replace(co_name=function.__name__, co_qualname=function.__qualname__)  # type: ignore[attr-defined]
    return wrapper
