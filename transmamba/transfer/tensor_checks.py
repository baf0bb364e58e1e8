"""Checks that a teacher's tensors can be read and a student's written: real or complex numbers, whole, with values."""

from collections.abc import Mapping

import torch
from torch import Tensor

from transmamba._checkpoint import NUMBER_CODES, NUMBERS, LazyTensors


def check_source(name: str, weights: Mapping[str, Tensor]) -> None:
    """Raise TypeError or ValueError unless a teacher's tensor has plain floating numbers; a file's header suffices."""
    if isinstance(weights, LazyTensors):
        if weights.dtype(name) not in NUMBER_CODES:
            raise TypeError(_quantised(name, weights.dtype(name)))
        return
    tensor = weights[name]
    _refuse_sharded("teacher", name, tensor)
    if tensor.is_quantized or tensor.dtype not in NUMBERS:
        raise TypeError(_quantised(name, str(tensor.dtype)))
    if tensor.is_meta:
        raise ValueError(f"teacher tensor {name} is on the meta device and has no values: load the teacher first")


def check_target(name: str, tensor: Tensor) -> None:
    """Raise TypeError or ValueError unless a student's tensor can be written in place."""
    _refuse_sharded("student", name, tensor)
    if tensor.is_meta:
        raise ValueError(
            f"student tensor {name} is on the meta device: materialise first, student.to_empty(device=...), then"
            " initialise, then subclone"
        )
    if tensor.is_quantized or tensor.dtype not in NUMBERS:
        raise TypeError(
            f"student tensor {name} is {tensor.dtype}: expected float16, bfloat16, float32, float64 or complex"
        )


def check_kind(teacher: str, complex_teacher: bool, name: str, tensor: Tensor) -> None:
    """Raise TypeError if a complex teacher tensor is for a real one of the student, which has no imaginary part."""
    if complex_teacher and not tensor.is_complex():
        raise TypeError(
            f"teacher tensor {teacher} is complex, student tensor {name} is {tensor.dtype}: exclude the tensor, or give"
            " the student a complex parameter"
        )


def _refuse_sharded(side: str, name: str, tensor: Tensor) -> None:
    if torch.distributed.is_available():
        from torch.distributed.tensor import DTensor

        if isinstance(tensor, DTensor):
            raise TypeError(
                f"{side} tensor {name} is sharded (DTensor): neurons are chosen from whole tensors; subclone before"
                " sharding the model, or use a gathered state dict"
            )


def _quantised(name: str, dtype: str) -> str:
    return (
        f"teacher tensor {name} is quantised ({dtype}): expected float16, bfloat16, float32 or float64; load the"
        " teacher without quantisation"
    )
