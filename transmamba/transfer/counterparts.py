"""Choice of the table that fits a student and a teacher."""

import math

from transmamba._layer_maps import LayerMap, resolve_layer_map
from transmamba.transfer.differences import compare, share_stem
from transmamba.transfer.plan import Entries, affine
from transmamba.transfer.student import Student, Table
from transmamba.transfer.students import mamba2_table, mamba_table, transformer_table
from transmamba.transfer.teachers import Translated


def table_for(student: Student, teacher: Translated, layer_map: LayerMap) -> Table:
    """Find the table of a student and a teacher.

    Args:
        student: its tensors.
        teacher: the teacher in canonical form.
        layer_map: which teacher layer a student layer inherits, for students in stages and for teachers that norm
            after their residuals.
    """
    facts, gated = teacher.architecture, any(student.gated(f"{block}mlp") for block in student.blocks)
    if facts.kind == "ssm":
        branches = 2 if any(".branches.1." in name for name in teacher) else 1
        heads = any(name.endswith("ssm.A_log") and len(teacher.shape(name)) == 1 for name in teacher)
        plan = mamba2_table(facts.kv_heads or 1, gated) if heads else mamba_table(branches, gated)
        return Table(_place_positions(_as_language(plan, student), student, teacher))
    norm = "blocks.0.attn.q_norm.weight"
    full = norm in teacher and teacher.shape(norm)[0] != facts.head_dim
    plan = _as_language(transformer_table(facts, "blocks.0.mlp.gate.weight" in teacher, full), student)
    if facts.placement == "post" and student.placement != "post":
        plan = _pre_norm(plan, student, facts.depth, layer_map)
    if not share_stem(student, teacher):
        plan = {key: entry for key, entry in plan.items() if key.startswith(("blocks.", "norm."))}
    plan = _place_positions(_norm_before_head(plan, student, teacher), student, teacher)
    table = Table(_in_stages(plan, student, facts.depth, layer_map))
    blocks = [block for block in student.blocks if block.startswith("blocks.")]
    layers = resolve_layer_map(layer_map, len(blocks), facts.depth) if blocks else {}
    compare(table, student, teacher, layers)
    return table


def _as_language(plan: Entries, student: Student) -> Entries:
    """Replace the head over classes by one over a vocabulary, for students with an embedding."""
    if "embedding.weight" not in student.tensors:
        return plan
    return {**plan, "head.weight": ("head.weight", "logit residual")}


def _norm_before_head(plan: Entries, student: Student, teacher: Translated) -> Entries:
    """Adapt `plan` to a teacher that norms the head's input instead of all tokens: CLIP, BEiT, mean-pooled ViTs."""
    if "norm.weight" in teacher or "fc_norm.weight" not in teacher or "fc_norm.weight" in student.tensors:
        return plan
    return plan | affine("norm", "fc_norm", "residual")


def _pre_norm(plan: Entries, student: Student, depth: int, layer_map: LayerMap) -> Entries:
    """Adapt `plan` to a pre-norm student of a post-norm teacher, each of whose layers gets a stream normed by the last.

    The norm of the embeddings stays where it is, or becomes the first norm of a student that has no place for it.
    """
    layers = resolve_layer_map(layer_map, len(student.blocks), depth) if student.blocks else {}
    first: Entries = {}
    if "embed_norm.weight" not in student.tensors and layers.get(0) == 0:
        first = affine("blocks.0.norm1", "embed_norm", "residual")
    moved = affine("blocks.{i}.norm1", "blocks.{i-1}.norm2", "residual")
    moved |= affine("blocks.{i}.norm2", "blocks.{i}.norm1", "residual")
    return first | plan | moved | affine("norm", "blocks.{last}.norm2", "residual")


def _place_positions(plan: Entries, student: Student, teacher: Translated) -> Entries:
    """Add the class rows and the grids of both position tables to `plan`."""
    if "pos_embed" not in teacher or plan.get("pos_embed", ("", ""))[1] != "1 token residual":
        return plan
    grid, ours = teacher.architecture.grid, student.attribute("grid")
    theirs = "*" if grid is None else str(teacher.shape("pos_embed")[1] - math.prod(grid))
    place = "mid" if student.attribute("cls_position") else "*"
    stands = teacher.architecture.class_position
    # a state dict of Vim's names that does not say: the student's place is the teacher's
    theirs = "mid" if stands == "middle" or (stands is None and place == "mid") else theirs
    word = "token" if (theirs, place) == ("*", "*") else f"token:{theirs}>{place}"
    odd = grid is not None and isinstance(ours, tuple) and len(ours) == 2 and (grid[0] != grid[1] or ours[0] != ours[1])
    if odd and "pos_embed" in student.tensors and grid is not None and place == "*":
        extra = student.tensors["pos_embed"].shape[1] - math.prod(ours)
        word = f"token:{theirs}>{extra}:{grid[0]}x{grid[1]}>{ours[0]}x{ours[1]}"
    return {**plan, "pos_embed": ("pos_embed", f"1 {word} residual")}


def _in_stages(plan: Entries, student: Student, depth: int, layer_map: LayerMap) -> Entries:
    """Adapt `plan` to a pyramid: norms and MLPs of its blocks, norm and head; each stage has its own stream width."""
    blocks = [block for block in student.blocks if block.startswith("stages.")]
    if not blocks:
        return plan
    layers = resolve_layer_map(layer_map, len(blocks), depth)
    stages = {block: block.split(".")[1] for block in blocks}
    staged: Entries = {}
    for number, layer in layers.items():
        block = blocks[number]
        hidden = f"hidden.{stages[block]}.{block.split('.')[3]}"
        for key, (pattern, axes) in plan.items():
            if key.startswith("blocks.{i}.") and ".attn." not in key and ".mixer." not in key:
                words = axes.replace("residual", f"residual.{stages[block]}").replace("hidden.{i}", hidden)
                name = key.replace("blocks.{i}.", block)
                staged[name] = pattern.replace("{i-1}", str(layer - 1)).replace("{i}", str(layer)), words
    last = f"residual.{max(stages.values(), key=int)}"
    tail = {key: plan[key] for key in plan if key.startswith(("norm.", "head.", "fc_norm."))}
    return staged | {key: (pattern, axes.replace("residual", last)) for key, (pattern, axes) in tail.items()}
