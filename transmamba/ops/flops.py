"""The cost of a scan, for `torch.utils.flop_counter.FlopCounterMode(custom_mapping=FLOP_FORMULAS)`.

Per step, channel and state 9 operations (Mamba's convention), and one per step and channel for the direct path D; of
the 9, a cross scan spends the last 2, those of the readout, per query instead. The
formulas are not registered for good: that would import the counter, and with it Triton, into every program.
"""

from collections.abc import Callable
from typing import Any

import torch


def scan_flops(name: str, *arguments: Any, **_: Any) -> int:
    """Count the operations of a scan, from the shapes of the fields of its `ScanInputs`."""
    u, dt, A, B, C, D, _, orders = arguments[:8]
    directions = max(shape[axis] for shape, axis in ((u, 1), (dt, 1), (A, 0), (B, 1), (C, 1)))
    directions = directions if orders is None else orders[0]
    batch, _, length, channels = u
    return batch * directions * length * channels * (9 * A[1] + (D is not None))


def scan_backward_flops(name: str, *arguments: Any, **_: Any) -> int:
    """Count twice the operations of the forward, as for a matrix product; recomputed ones are left out."""
    return 2 * scan_flops(name, *arguments)


def cross_flops(name: str, *arguments: Any, **_: Any) -> int:
    """Count the operations of a cross scan, from the shapes of the fields of its `CrossInputs`."""
    u, dt, A, B, C, _, orders = arguments[:7]
    directions = max(shape[axis] for shape, axis in ((u, 1), (dt, 1), (A, 0), (B, 1), (C, 1)))
    directions = directions if orders is None else orders[0]
    batch, _, length, channels = u
    return batch * directions * channels * A[1] * (7 * length + 2 * C[2])


def cross_backward_flops(name: str, *arguments: Any, **_: Any) -> int:
    """Count twice the operations of the forward, as for a matrix product; recomputed ones are left out."""
    return 2 * cross_flops(name, *arguments)


FLOP_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.transmamba.scan_forward: scan_flops,
    torch.ops.transmamba.scan_backward: scan_backward_flops,
    torch.ops.transmamba.cross_forward: cross_flops,
    torch.ops.transmamba.cross_backward: cross_backward_flops,
}
