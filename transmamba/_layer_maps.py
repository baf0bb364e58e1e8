"""Pair each student layer with a teacher layer, for the weights it inherits and the features it imitates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from transmamba._typing import check_choice

LayerMapName = Literal["early", "uniform", "drop_middle", "proportional"]
LayerMap = LayerMapName | Mapping[int, int] | Sequence[int]


def early(student: int, teacher: int) -> dict[int, int]:
    """Take the first teacher layers in turn; a deeper student's last layers inherit nothing."""
    return {layer: layer for layer in range(min(student, teacher))}


def uniform(student: int, teacher: int) -> dict[int, int]:
    """Spread evenly over the teacher, first and last included; a deeper student repeats teacher layers."""
    if student == 1:
        return {0: 0}
    return {layer: (2 * layer * (teacher - 1) + student - 1) // (2 * (student - 1)) for layer in range(student)}


def drop_middle(student: int, teacher: int) -> dict[int, int]:
    """Leave out a run of the teacher's middle layers, as in weight subcloning (arXiv 2312.09299).

    Raises:
        ValueError: the student is deeper than the teacher.
    """
    if student > teacher:
        raise ValueError(
            f"drop_middle removes layers, but the student has {student} and the teacher {teacher}: use 'early' or"
            " 'uniform', or a mapping"
        )
    head = (student + 1) // 2
    return {layer: layer if layer < head else layer + teacher - student for layer in range(student)}


def proportional(student: int, teacher: int) -> dict[int, int]:
    """Take the deepest teacher layer within each student layer's share of the depth, so that last meets last."""
    return {layer: -(-(layer + 1) * teacher // student) - 1 for layer in range(student)}


LAYER_MAPS: dict[str, Callable[[int, int], dict[int, int]]] = {
    "early": early,
    "uniform": uniform,
    "drop_middle": drop_middle,
    "proportional": proportional,
}


def resolve_layer_map(layer_map: LayerMap, student: int, teacher: int) -> dict[int, int]:
    """Return the teacher layer of each student layer that has one.

    Args:
        layer_map: a name, a mapping student layer -> teacher layer, or a sequence of one teacher layer per student
            layer from the first on.
        student: layers of the student.
        teacher: layers of the teacher.

    Raises:
        ValueError: the name is unknown, or a layer does not exist.

    Example:
        >>> resolve_layer_map("drop_middle", 4, 7)
        {0: 0, 1: 1, 2: 5, 3: 6}
        >>> resolve_layer_map("uniform", 4, 7)
        {0: 0, 1: 2, 2: 4, 3: 6}
    """
    if isinstance(layer_map, str):
        check_choice("layer map", layer_map, LAYER_MAPS, ", or a mapping")
        return LAYER_MAPS[layer_map](student, teacher)
    pairs = dict(layer_map) if isinstance(layer_map, Mapping) else dict(enumerate(layer_map))
    for ours, theirs in pairs.items():
        if not (0 <= ours < student and 0 <= theirs < teacher):
            raise ValueError(
                f"layer map sends student layer {ours} to teacher layer {theirs}: expected 0 to {student - 1} and"
                f" 0 to {teacher - 1}"
            )
    return pairs
