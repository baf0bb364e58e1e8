"""What `torch.utils.flop_counter` counts for a scan.

Per step, channel and state 9 operations (Mamba's convention), and one per step and channel for the direct path D.
"""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from transmamba.ops.backends import opaque as opaque  # defines the two ops


@register_flop_formula(torch.ops.transmamba.scan_forward)
def scan_flops(name: str, *arguments: Any, **_: Any) -> int:
    """Operations of a scan, from the shapes of the fields of its `Problem`."""
    u, dt, A, B, C, D, _, orders = arguments[:8]
    directions = max(shape[axis] for shape, axis in ((u, 1), (dt, 1), (A, 0), (B, 1), (C, 1)))
    directions = directions if orders is None else orders[0]
    batch, _, length, channels = u
    return batch * directions * length * channels * (9 * A[1] + (D is not None))


@register_flop_formula(torch.ops.transmamba.scan_backward)
def scan_backward_flops(name: str, *arguments: Any, **_: Any) -> int:
    """Twice the forward, as for a matrix product; what is recomputed does not count."""
    return 2 * scan_flops(name, *arguments)
