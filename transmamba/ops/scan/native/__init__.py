"""The scan compiled for the CPU: tiles in the cache, lanes over channels, time sequential.

With one state and time innermost in memory, lanes are steps instead.

A C++ library with a plain C interface, built when the package is installed (build.py) and loaded with ctypes. The
forward keeps the states at chunk starts; the backward recomputes the rest, chunk by chunk. scan.h documents the
interface, unit.h how work is divided, run.h which inputs each kernel takes.
"""

from typing import TypeVar

import torch
from torch import Tensor

from transmamba.ops.native.library import DTYPES, Array, Scan, are_permutations, array, available, fresh, run
from transmamba.ops.scan.inputs import ScanGradients, ScanInputs, output_dtype
from transmamba.ops.shapes import allocate

CHUNK = 32
AnyScan = TypeVar("AnyScan", bound=Scan)


def unsupported_reasons(inputs: ScanInputs) -> list[str]:
    """List the reasons not to run here: another device or dtype, or no library."""
    return token_reasons(inputs.u)


def token_reasons(u: Tensor) -> list[str]:
    """List the reasons not to run on these tokens, by any scan of the library."""
    reasons = []
    if u.device.type != "cpu":
        reasons.append(f"runs on a CPU, u is on {u.device}")
    if u.dtype not in DTYPES:
        reasons.append(f"needs float32, bfloat16, float16 or float64, u is {u.dtype}")
    if not available():
        reasons.append(
            "its library was not built: install a C++ compiler (g++ or clang++, or name one in CXX), then reinstall "
            "with pip install --force-reinstall --no-deps --no-binary transmamba transmamba"
        )
    return reasons


def forward(inputs: ScanInputs, save: bool, *, variant: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs, last states, and the states at chunk starts if `save`; `variant` forces an instruction set."""
    p, (batch, directions, length, channels, state) = inputs, inputs.sizes
    # no result of the forward depends on the number of units: as few as keep the threads busy
    scan, _keep = describe(p, Scan, units=4 * torch.get_num_threads())
    chunks = -(-length // CHUNK)
    dtype = output_dtype(p)
    y = sum_buffer(p.u, 1, scan) if p.merge else fresh(allocate(p.u, directions, dtype))
    last = p.A.new_empty(batch, directions, state, channels)
    saved = fresh(p.A.new_empty((batch, directions, chunks, state, channels) if save else 0))
    scan.y, scan.last = array(y, 0, 1, 2, 3), array(last, 0, 1, None, 3)
    if save:
        scan.saved = array(saved, 0, 1, 2, 4)
    run(scan, backward=False, variant=variant)
    return y.to(dtype), last, saved


def backward(
    inputs: ScanInputs, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None, *, variant: str | None = None
) -> ScanGradients:
    """Return the gradients of every input, from those of the outputs and of the last states."""
    p, (batch, _, length, channels, state) = inputs, inputs.sizes
    scan, _keep = describe(p, Scan)
    grad_last = None if grad_last is None else grad_last.contiguous()
    du, ddt = (sum_buffer(x, x.shape[1], scan) for x in (p.u, p.dt))
    # one slot per batch element or part of the channels, summed afterwards: the same result on any number of threads
    dA = p.A.new_zeros(batch, *p.A.shape)
    dD, dbias = (None if x is None else x.new_zeros(batch, *x.shape) for x in (p.D, p.dt_bias))
    dinitial = None if p.initial_state is None else p.A.new_empty(p.initial_state.shape)
    parts = -(-channels // scan.part)
    dB, dC = (p.A.new_empty(parts, batch, x.shape[1], length, state) for x in (p.B, p.C))
    scan.saved, scan.grad_y, scan.grad_last = array(saved, 0, 1, 2, 4), array(grad_y, 0, 1, 2, 3), _states(grad_last)
    scan.du, scan.ddt, scan.dinitial = array(du, 0, 1, 2, 3), array(ddt, 0, 1, 2, 3), _states(dinitial)
    scan.dA, scan.dD, scan.dbias = array(dA, 0, 1, 2, 3), array(dD, 0, 1, None, 2), array(dbias, 0, 1, None, 2)
    scan.dB, scan.dC = array(dB, 1, 2, 3, 4), array(dC, 1, 2, 3, 4)
    scan.dB_part, scan.dC_part = dB.stride(0), dC.stride(0)
    run(scan, backward=True, variant=variant)
    dA, dB, dC = (sum_slots(x) for x in (dA, dB, dC))
    du, ddt, dB, dC = (x.to(p.u.dtype) for x in (du, ddt, dB, dC))
    dD, dbias = (None if x is None else sum_slots(x) for x in (dD, dbias))
    return ScanGradients(du, ddt, dA, dB, dC, dD, dbias, dinitial)


def sum_slots(slots: Tensor) -> Tensor:
    """Return the sum over the first axis, without a copy of a single slot."""
    return slots[0] if len(slots) == 1 else slots.sum(0)


def describe(p: ScanInputs, kind: type[AnyScan], units: int = 16) -> tuple[AnyScan, list[Tensor | None]]:
    """Return the inputs by pointers in a structure of that kind, and the tensors that must outlive them.

    Gradients are summed over a unit's channels, so `units` may follow from the number of threads in a forward only.

    Raises:
        ValueError: a row of `orders` is not a permutation of the tokens.
    """
    small = [None if x is None else x.contiguous() for x in (p.A, p.D, p.dt_bias, p.initial_state)]
    A, D, bias, initial = small
    orders, segments = (None if x is None else x.contiguous() for x in (p.orders, p.segments))
    batch, directions, length, channels, state = p.sizes
    if orders is not None and not are_permutations(orders):
        raise ValueError(f"orders must hold a permutation of range({length}) in every row: build them with scan_order")
    scan = kind(batch, directions, length, channels, state, CHUNK, _part(batch, channels, state, units))
    scan.wide, scan.softplus = p.u.dtype == torch.float64, p.softplus
    scan.by_step = p.parameters_by_step or orders is None
    shared = (x is None or x.shape[axis] == 1 for x, axis in ((p.dt, 1), (p.A, 0), (p.dt_bias, 0)))
    scan.together = scan.by_step and all(shared)
    scan.orders, scan.segments = (None if x is None else x.data_ptr() for x in (orders, segments))
    scan.u, scan.dt, scan.B, scan.C = (array(x, 0, 1, 2, 3) for x in (p.u, p.dt, p.B, p.C))
    scan.A, scan.D, scan.bias = array(A, None, 0, 1, 2), array(D, None, 0, None, 1), array(bias, None, 0, None, 1)
    scan.initial = _states(initial)
    return scan, [*small, orders, segments]


def _states(x: Tensor | None) -> Array:
    return array(x, 0, 1, None, 3)


def _part(batch: int, channels: int, state: int, units: int) -> int:
    """Choose the channels per unit of work: wide, but so many units where the least number of channels allows them."""
    least = 192 if state == 1 else 128  # one state walks along rows: the longer, the better for memory
    parts = max(1, min(channels // least, -(-units // max(1, batch))))
    return max(1, -(-channels // parts // 32) * 32)


def sum_buffer(like: Tensor, size: int, scan: Scan) -> Tensor:
    """Allocate like `like`; if directions are summed into the result, in the compute dtype and ready to be added to."""
    out = fresh(allocate(like, size))
    if size == scan.directions:
        return out
    out = fresh(torch.empty_like(out, dtype=torch.float64 if scan.wide else torch.float32))
    # directions that advance together have no first one that overwrites earlier contents
    return out.zero_() if scan.together else out
