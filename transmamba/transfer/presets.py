"""Finding a plan: the preset that fits, or a draft from names and shapes."""

import re
from collections.abc import Iterable, Mapping, Sequence

from transmamba._typing import check_sizes, typed
from transmamba.transfer.axes import substitute
from transmamba.transfer.layer_maps import LayerMap, resolve_layer_map
from transmamba.transfer.matching import AmbiguousName, Plan, count_layers, match
from transmamba.transfer.plans import PRESETS, VIT


@typed
def bind(plan: Plan, **sizes: int) -> dict[str, tuple[str, str]]:
    """`plan` with axis names replaced by numbers, for what shapes do not tell.

    Example:
        >>> bind({"attn.proj.weight": ("attn.proj.weight", "residual head*head_dim")}, head_dim=64)
        {'attn.proj.weight': ('attn.proj.weight', 'residual head*64')}
    """
    return {name: (pattern, substitute(axes, sizes)) for name, (pattern, axes) in plan.items()}


def find_preset(student: Iterable[str], teacher: Iterable[str], layer_map: LayerMap) -> Plan:
    """The preset that initialises most tensors of the student; `stage_plan` for stages that a ViT is to fill.

    Raises:
        ValueError: none finds a layer of the teacher, or only by names that fit several of its tensors.
    """
    student, teacher = list(student), list(teacher)
    best, most, ambiguous = "", 0, None
    for name, plan in PRESETS.items():
        try:
            found = match(plan, student, teacher, layer_map)
        except AmbiguousName as error:  # both towers of a CLIP have what an image model's names end with
            ambiguous = error
            continue
        count = len({copy.student for copy in found.copies})
        if found.layers and count > most:
            best, most = name, count
    if not best and (stages := _plan_of_stages(student, teacher, layer_map)):
        return stages
    if not best and ambiguous:
        raise ambiguous
    if not best:
        raise ValueError(
            f"no preset of {', '.join(PRESETS)} knows these names: the teacher has {_few(teacher)}; the student has"
            f" {_few(student)}. Give plan={{student name: (teacher name, axes)}}; propose_plan(teacher, student)"
            " drafts one"
        )
    return PRESETS[best]


def place_class_row(plan: Plan, student: object) -> Plan:
    """`plan` for a student whose `cls_position` says that its class token stands among the patches, as in Vim."""
    if "pos_embed" not in plan or not getattr(student, "cls_position", 0):
        return plan
    pattern, axes = plan["pos_embed"]
    side = "mid" if plan is PRESETS["mamba"] else "*"
    return {**plan, "pos_embed": (pattern, axes.replace("token", f"token:{side}>mid"))}


def _plan_of_stages(student: list[str], teacher: list[str], layer_map: LayerMap) -> Plan:
    """`stage_plan` for names such as `stages.0.blocks.1.norm1.weight`; empty if there are none, or no ViT."""
    hits = [hit for name in student if (hit := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name))]
    teacher_depth = count_layers(VIT, teacher)
    if not hits or not teacher_depth:
        return {}
    depths = [0] * (1 + max(int(hit[1]) for hit in hits))
    for hit in hits:
        depths[int(hit[1])] = max(depths[int(hit[1])], int(hit[2]) + 1)
    plan = stage_plan(depths, teacher_depth, layer_map)
    return {name: entry for name, entry in plan.items() if name in student}


@typed
def stage_plan(
    depths: Sequence[int], teacher_depth: int, layer_map: LayerMap = "uniform"
) -> dict[str, tuple[str, str]]:
    """ViT -> a pyramid such as VMamba: norms and MLPs of its blocks, head; each stage has a stream of its own width.

    `subclone` finds this plan by itself; it is there to be changed.

    Args:
        depths: blocks of each stage.
        teacher_depth: layers of the teacher.
        layer_map: the teacher layer of each block, the blocks of all stages counted through.

    Raises:
        ValueError: a number of blocks or layers is below 1, or the layer map does not fit.

    Example:
        >>> plan = stage_plan((1, 2), 12)
        >>> plan["stages.1.blocks.1.mlp.fc1.bias"][0].split(" | ")[0]
        'blocks.11.mlp.fc1.bias'
    """
    check_sizes(teacher_depth=teacher_depth)
    for depth in depths:
        check_sizes(depth=depth)
    blocks = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    plan = {}
    for number, layer in resolve_layer_map(layer_map, len(blocks), teacher_depth).items():
        stage, block = blocks[number]
        for key, (pattern, axes) in VIT.items():
            if key.startswith("blocks.") and ".attn." not in key:
                words = axes.replace("residual", f"residual.{stage}").replace("hidden.{i}", f"hidden.{stage}.{block}")
                name = key.replace("blocks.{i}", f"stages.{stage}.blocks.{block}")
                plan[name] = (pattern.replace("{i}", str(layer)), words)
    last = f"residual.{len(depths) - 1}"
    tail = ("norm.weight", "norm.bias", "head.weight", "head.bias")
    return plan | {key: (VIT[key][0], VIT[key][1].replace("residual", last)) for key in tail}


def _few(names: Mapping[str, object] | Sequence[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f", ... ({len(listed)} tensors)" if len(listed) > 4 else "")
