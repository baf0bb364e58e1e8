"""Match each student layer with a teacher layer."""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from transmamba._layer_maps import LAYER_MAPS, LayerMap, LayerMapName, resolve_layer_map
from transmamba._typing import check_sizes, typed, unknown_choice
from transmamba.distill.checks import Layers, check_tensors, widen

# a layer map as for inheritance, in which every student layer has a teacher layer, or the last teacher layer for all
TeacherLayers = LayerMapName | Literal["last"] | Mapping[int, int] | Sequence[int]


def check_teacher_layers(teacher_layers: TeacherLayers) -> None:
    """Refuse an unknown name of a layer map.

    Raises:
        ValueError: it is a string, and neither "last" nor the name of a layer map.
    """
    names = ("last", *LAYER_MAPS)
    if isinstance(teacher_layers, str) and teacher_layers not in names:
        rest = ", a mapping such as report.layers, or one index per layer"
        raise unknown_choice("teacher_layers", teacher_layers, names, rest)


@typed
def match_layers(
    student: int | Layers, teacher: int | Layers, teacher_layers: TeacherLayers | Literal["similarity"]
) -> tuple[int, ...]:
    """Choose the teacher layer of each student layer.

    Args:
        student: the number of layers, or their features (needed for "similarity").
        teacher: likewise.
        teacher_layers: a layer map by the names that `transfer.subclone` has for it: "uniform" (evenly spread from the
            first to the last), "early", "drop_middle", "proportional" (the same relative depth, last meets last); or
            "last" (all meet the last one), "similarity" (the teacher layer of largest linear CKA), a mapping such as
            `report.layers`, or one teacher index per student layer, negatives from the end.

    Raises:
        ValueError: no layers, more than 2**31 - 1, too few or too many indices, an index out of range, a student layer
            without a teacher layer, or "similarity" without features.

    Example:
        >>> match_layers(4, 12, "uniform")
        (0, 4, 7, 11)
        >>> match_layers(4, 12, "proportional")
        (2, 5, 8, 11)
    """
    students, teachers = (side if isinstance(side, int) else len(side) for side in (student, teacher))
    if students < 1 or teachers < 1:
        raise ValueError(
            f"cannot match {students} student layers with {teachers} teacher layers: both need at least one"
        )
    check_sizes(student=students, teacher=teachers)
    if teacher_layers == "last":
        return (teachers - 1,) * students
    if teacher_layers == "similarity":
        if isinstance(student, int) or isinstance(teacher, int):
            raise ValueError("matching by similarity needs the features of both sides, got a number of layers")
        return tuple(cka_matrix(student, teacher).argmax(1).tolist())
    if isinstance(teacher_layers, str | Mapping):
        return _complete(resolve_layer_map(cast(LayerMap, teacher_layers), students, teachers), students)
    return _explicit(teacher_layers, students, teachers)


def _complete(layers: Mapping[int, int], students: int) -> tuple[int, ...]:
    missing = [number for number in range(students) if number not in layers]
    if missing:
        raise ValueError(
            f"the layer map gives student layer {missing[0]} no teacher layer to imitate: choose another map, such as"
            f" 'uniform', or leave out the features of these layers ({', '.join(map(str, missing))})"
        )
    return tuple(layers[number] for number in range(students))


def _explicit(indices: Sequence[int], students: int, teachers: int) -> tuple[int, ...]:
    if len(indices) != students:
        raise ValueError(f"{len(indices)} teacher indices for {students} student layers: give one for each")
    for number, index in enumerate(indices):
        if not -teachers <= index < teachers:
            raise ValueError(
                f"student layer {number} is matched with teacher layer {index}: valid are {-teachers} to {teachers - 1}"
            )
    return tuple(index % teachers for index in indices)


@typed
def linear_cka(x: Float[Tensor, "*sample dim"], y: Float[Tensor, "*sample dim2"]) -> Float[Tensor, ""]:
    """Compute linear centred kernel alignment: 1 for features equal up to rotation and scale, whatever their widths.

    With X and Y centred over the samples (every axis but the last): |X^T Y|^2 / (|X^T X| |Y^T Y|), Frobenius norms.

    Reference:
        Kornblith et al., Similarity of Neural Network Representations Revisited, arXiv 1905.00414.

    Example:
        >>> x = torch.eye(4)
        >>> linear_cka(x, 3 * x.flip(1)).round(decimals=4)
        tensor(1.)
    """
    x, y = (widen(side).flatten(0, -2) for side in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    norms = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return (x.T @ y).square().sum() / norms.clamp_min(torch.finfo(x.dtype).tiny)


@typed
@torch.no_grad()
def cka_matrix(student: Layers, teacher: Layers) -> Float[Tensor, "student teacher"]:
    """Compute linear CKA of every student layer with every teacher layer; same samples and tokens, any widths.

    Raises:
        ValueError: a side is empty, or a layer differs from the first teacher layer in samples or tokens.
        TypeError: a layer is not a tensor.
    """
    sides = (("student", student), ("teacher", teacher))
    for side, layers in sides:
        check_tensors(layers, side)
        if not len(layers):
            raise ValueError(f"{side} is empty: expected at least one layer")
    for side, layers in sides:
        for number, layer in enumerate(layers):
            if layer.shape[:-1] != teacher[0].shape[:-1]:
                raise ValueError(
                    f"{side} layer {number} has samples {tuple(layer.shape[:-1])}, teacher layer 0 "
                    f"{tuple(teacher[0].shape[:-1])}: align them first, align_tokens(student, teacher, ...)"
                )
    return torch.stack([torch.stack([linear_cka(one, other) for other in teacher]) for one in student])
