"""The one loop that checks a sequence of features, and the precision in which losses compute.

A run-time type checker looks at one item of a list. A wrong layer among twelve must be found on every call and by its
number, so each loss passes its sequences through `check_layers`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

# each item is [batch token dim] or, for pooled vectors, [batch dim]; `check_layers` names one that is not
Layers = Sequence[Shaped[Tensor, "..."]]

_REMEDY = {
    "batch": "give both the same samples",
    "tokens": "align them first, align_tokens(student, teacher, ...)",
    "heads": "average or repeat heads until both have as many",
    "queries": "mix the same tokens on both sides",
    "keys": "mix the same tokens on both sides",
}


def check_layers(
    student: Layers,
    teacher: Layers,
    *,
    axes: Sequence[str] = ("batch", "tokens", "channels"),
    name: str = "student",
) -> None:
    """Refuse student layers that do not fit their teacher feature: `teacher` holds one per layer, or one for all.

    Args:
        student: the layers, called `name` in messages.
        teacher: one feature per layer, or one for all.
        axes: the axes that each has, all to be equal.
        name: which student this is.

    Raises:
        ValueError: `student` or `teacher` is empty, or a layer differs from its teacher along one of `axes`.
        TypeError: a layer is not a floating tensor.
    """
    for side, layers in ((name, student), ("teacher", teacher)):
        if len(layers) == 0:
            raise ValueError(f"{side} is empty: expected at least one layer")
    for number, layer in enumerate(teacher):
        _check_feature(layer, "teacher" if len(teacher) == 1 else f"teacher of {name} layer {number}", axes)
    for number, layer in enumerate(student):
        _check_feature(layer, f"{name} layer {number}", axes)
        target = teacher[number if len(teacher) > 1 else 0]
        for axis, (got, expected) in zip(axes, zip(layer.shape, target.shape, strict=True), strict=True):
            if got != expected:
                remedy = _REMEDY.get(axis, f"calibrate first, FeatureCalibrator({got}, {expected})")
                raise ValueError(f"{name} layer {number} has {got} {axis}, teacher {expected}: {remedy}")


def _check_feature(x: Tensor, name: str, axes: Sequence[str]) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}: expected a tensor [{' '.join(axes)}]")
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}: expected a floating dtype")
    if x.dim() != len(axes):
        raise ValueError(f"{name} has shape {tuple(x.shape)}: expected [{' '.join(axes)}]")


def check_mask(mask: Tensor | None, layer: Tensor) -> None:
    """Refuse a mask of other tokens than those of `layer`, [batch token dim].

    Raises:
        ValueError: shapes differ.
    """
    if mask is not None and mask.shape != layer.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}: expected {tuple(layer.shape[:2])}, [batch token]")


def check_tensors(layers: Layers, name: str) -> None:
    """Refuse layers that are not tensors.

    Raises:
        TypeError: a layer is something else.
    """
    for number, layer in enumerate(layers):
        if not isinstance(layer, Tensor):
            raise TypeError(f"{name} layer {number} is a {type(layer).__name__}: expected a tensor")


def real_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return `x` with zero in place of padding.

    A value that is left out of a mean still meets its gradient, and zero times NaN is NaN: padding has to go before.
    """
    return x if mask is None else x.masked_fill(~mask[..., None], 0)


def widen(x: Tensor) -> Tensor:
    """Return `x` in at least single precision: losses never compute in half."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
