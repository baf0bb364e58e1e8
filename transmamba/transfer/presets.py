"""Finding a plan: the preset that fits, or a draft from names and shapes."""

from collections.abc import Iterable, Mapping, Sequence

from transmamba.transfer.axes import substitute
from transmamba.transfer.layer_maps import LayerMap
from transmamba.transfer.matching import Plan, match
from transmamba.transfer.plans import PRESETS


def bind(plan: Plan, **sizes: int) -> dict[str, tuple[str, str]]:
    """`plan` with axis names replaced by numbers, for what shapes do not tell.

    Example:
        >>> bind({"attn.proj.weight": ("attn.proj.weight", "residual head*head_dim")}, head_dim=64)
        {'attn.proj.weight': ('attn.proj.weight', 'residual head*64')}
    """
    return {name: (pattern, substitute(axes, sizes)) for name, (pattern, axes) in plan.items()}


def find_preset(student: Iterable[str], teacher: Iterable[str], layer_map: LayerMap) -> Plan:
    """The preset that initialises most tensors of the student.

    Raises:
        ValueError: none finds a layer of the teacher.
    """
    student, teacher = list(student), list(teacher)
    best, most = "", 0
    for name, plan in PRESETS.items():
        found = match(plan, student, teacher, layer_map)
        count = len({copy.student for copy in found.copies})
        if found.layers and count > most:
            best, most = name, count
    if not best:
        raise ValueError(
            f"no preset of {', '.join(PRESETS)} knows these names: the teacher has {_few(teacher)}; the student has"
            f" {_few(student)}. Give plan={{student name: (teacher name, axes)}}; propose_plan(teacher, student)"
            " drafts one"
        )
    return PRESETS[best]


def _few(names: Mapping[str, object] | Sequence[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f", ... ({len(listed)} tensors)" if len(listed) > 4 else "")
