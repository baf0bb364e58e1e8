"""Who can run a scan: the ordered table, and the report of who refuses and why."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from transmamba.ops.backends import cross_reference, cuda, opaque_cross, reference
from transmamba.ops.backends.convolution import Convolver, choose_convolver
from transmamba.ops.backends.cross_problem import CrossProblem
from transmamba.ops.backends.flops import FLOP_FORMULAS as FLOP_FORMULAS
from transmamba.ops.backends.opaque import KERNELS, refuse_opaque, run_opaque
from transmamba.ops.backends.problem import Convolution, Problem


class Backend(NamedTuple):
    """A way to run a `Problem` or a `CrossProblem`.

    `refuse` looks at metadata only and gives the reasons why this backend cannot run the problem; none means it can.
    """

    name: str
    run: Callable[[Any], tuple[Tensor, Tensor]]
    refuse: Callable[[Any], list[str]]


BACKENDS = (
    Backend("cuda", cuda.run, cuda.refuse),
    *(Backend(name, partial(run_opaque, name), partial(refuse_opaque, name)) for name in KERNELS),
    Backend("reference", reference.run, reference.refuse),
)

CROSS_BACKENDS = (
    Backend("cuda", cross_reference.run, lambda problem: ["package mamba_ssm has no cross scan"]),
    *(
        Backend(name, partial(opaque_cross.run_opaque, name), partial(opaque_cross.refuse_opaque, name))
        for name in opaque_cross.KERNELS
    ),
    Backend("reference", cross_reference.run, cross_reference.refuse),
)

_preferred = ["auto"]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, scans called with `backend="auto"` run on the backend `name`, whatever the thread.

    Convolutions do too where that backend has one for their case; otherwise they run in plain torch.

    Raises:
        ValueError: there is no backend of that name.
    """
    _lookup(name, BACKENDS)
    _preferred.append(name)
    try:
        yield
    finally:
        _preferred.pop()


def choose(problem: Problem | CrossProblem, name: str) -> Backend:
    """The backend `name`, or for "auto" the first of the table that accepts the problem.

    Raises:
        ValueError: there is no backend of that name.
        NotImplementedError: the named backend refuses; the message has its reasons and says who would accept.
    """
    name = _preferred[-1] if name == "auto" else name
    table, kind = (CROSS_BACKENDS, "cross scan") if isinstance(problem, CrossProblem) else (BACKENDS, "scan")
    if name == "auto":
        return next(backend for backend in table if not backend.refuse(problem))
    backend = _lookup(name, table)
    assert backend is not None
    reasons = backend.refuse(problem)
    if reasons:
        accepting = ", ".join(other.name for other in table if not other.refuse(problem))
        u = problem.u
        raise NotImplementedError(
            f"{kind} backend {name!r} refuses u {tuple(u.shape)} {str(u.dtype).removeprefix('torch.')} on {u.device}:\n"
            + "".join(f"  {reason}\n" for reason in reasons)
            + f"accepting here: {accepting}"
        )
    return backend


def explain(problem: Problem | CrossProblem) -> str:
    """A line per backend down to the one that "auto" takes: why it refuses the problem, or that it runs it."""
    lines = []
    for backend in CROSS_BACKENDS if isinstance(problem, CrossProblem) else BACKENDS:
        reasons = backend.refuse(problem)
        lines.append(f"{backend.name}: {'; '.join(reasons) or 'runs it'}")
        if not reasons:
            break
    return "\n".join(lines)


def choose_convolution(convolution: Convolution, name: str) -> Convolver:
    """The convolution of the backend `name`, or for "auto" the one that fits; see `choose_convolver`."""
    return choose_convolver(convolution, name, _preferred[-1])


def _lookup(name: str, table: Sequence[Backend]) -> Backend | None:
    if name == "auto":
        return None
    for backend in table:
        if backend.name == name:
            return backend
    raise ValueError(f"unknown scan backend {name!r}: expected auto, {', '.join(b.name for b in table)}")
