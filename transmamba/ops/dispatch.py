"""The table of backends: pick the first that supports a call, and explain why the others do not.

`TABLE` is filled by `scan/backends.py`, `cross/backends.py` and `conv/backends.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Backend(NamedTuple):
    """A way to run an operation on its record of inputs.

    `unsupported_reasons` looks at metadata only and lists the reasons why this backend cannot run them; none means it
    can.
    """

    name: str
    run: Callable[[Any], Any]
    unsupported_reasons: Callable[[Any], list[str]]


TABLE: dict[str, tuple[Backend, ...]] = {}  # by operation: fastest first, the reference last

_preferred = ["auto"]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run scans called with `backend="auto"` on the backend `name` within the block, whatever the thread.

    Convolutions do too where that backend has one for their case; otherwise they run in plain torch.

    Raises:
        ValueError: there is no backend of that name.
    """
    if name != "auto":
        _lookup("scan", name)
    _preferred.append(name)
    try:
        yield
    finally:
        _preferred.pop()


def select_backend(operation: str, inputs: Any, name: str) -> Backend:
    """Return the backend `name`, or for "auto" the first in the operation's row that accepts the inputs.

    Raises:
        ValueError: there is no backend of that name.
        NotImplementedError: the named backend refuses; the message has its reasons and those that would accept.
    """
    row, wanted = TABLE[operation], _preferred[-1] if name == "auto" else name
    if name == "auto" and operation == "convolution" and wanted != "auto":
        # a preference is for scans: not every backend of a scan has a convolution, or one for every case
        found = next((backend for backend in row if backend.name == wanted), None)
        if found is not None:
            return row[-1] if found.unsupported_reasons(inputs) else found
        wanted = "auto"
    if wanted == "auto":
        return next(backend for backend in row if not backend.unsupported_reasons(inputs))
    backend = _lookup(operation, wanted)
    reasons = backend.unsupported_reasons(inputs)
    if reasons:
        accepting = ", ".join(other.name for other in row if not other.unsupported_reasons(inputs))
        x, dtype = inputs[0], str(inputs[0].dtype).removeprefix("torch.")
        raise NotImplementedError(
            f"{operation} backend {wanted!r} refuses {inputs._fields[0]} {tuple(x.shape)} {dtype} on {x.device}:\n"
            + "".join(f"  {reason}\n" for reason in reasons)
            + f"accepting here: {accepting}"
        )
    return backend


def explain(operation: str, inputs: Any) -> str:
    """Return a line per backend down to the one that "auto" takes: why it refuses the inputs, or that it runs them."""
    lines = []
    for backend in TABLE[operation]:
        reasons = backend.unsupported_reasons(inputs)
        lines.append(f"{backend.name}: {'; '.join(reasons) or 'runs it'}")
        if not reasons:
            break
    return "\n".join(lines)


def _lookup(operation: str, name: str) -> Backend:
    for backend in TABLE[operation]:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in TABLE[operation])
    raise ValueError(f"unknown {operation} backend {name!r}: expected auto, {known}")
