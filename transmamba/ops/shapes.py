"""Shapes and memory layouts of the records that backends receive."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


def check_shapes(fields: Any, shapes: Sequence[Shape], shared: Sequence[Shape]) -> None:
    """Check the tensors of a record: shapes, and that all are on one device, because kernels read raw pointers.

    Args:
        fields: the record, its tensors first.
        shapes: the shape that each of them must have.
        shared: the same for a tensor that all directions share.

    Raises:
        ValueError: a tensor has neither shape, or is on another device than the first.
    """
    device = fields[0].device
    for name, x, shape, other in zip(fields._fields, fields, shapes, shared, strict=False):
        if not isinstance(x, Tensor):
            continue
        if x.shape != shape and x.shape != other:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: expected {shape}, with a 1 where directions share it")
        if x.device != device:
            raise ValueError(f"{name} is on {x.device}, {fields._fields[0]} on {device}: move both to one device")


def check_range(x: Tensor | None, length: int, meaning: str) -> None:
    """Check that `x` holds token numbers below `length`, because a kernel would read past the end of its memory.

    Only on a CPU: on a GPU the look would cost a synchronisation.

    Raises:
        ValueError: a number is out of range; `meaning` names the numbers that must be held.
    """
    if x is None or x.device.type != "cpu" or x.numel() == 0:
        return
    low, high = (int(bound) for bound in x.aminmax())
    if low < 0 or high >= length:
        raise ValueError(f"{meaning} 0 to {length - 1}, got {low} to {high}")


def compute_dtype(*inputs: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic of a scan by heads: float64 if an input is, otherwise float32."""
    return torch.float64 if any([x.dtype == torch.float64 for x in inputs]) else torch.float32


def allocate(template: Tensor, directions: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty (b, directions, l, d) tensor whose memory runs along the axis along which `template`'s does.

    A scan called with (batch, dim, length) tensors thus answers in that layout without a copy.
    """
    batch, _, length, channels = template.shape
    if template.stride(-2) == 1 and template.stride(-1) != 1:
        return template.new_empty(batch, directions, channels, length, dtype=dtype).transpose(-1, -2)
    return template.new_empty(batch, directions, length, channels, dtype=dtype)
