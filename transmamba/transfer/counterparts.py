"""Which table fits a student and a teacher, and what of it would inherit half a function.

An MLP is inherited whole, together with the norm that feeds it, or not at all: without its gate, a bias or the right
kind of norm it computes something else. The norms before a mixer and before the head give at least their gain.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from transmamba._checkpoint import Weights
from transmamba._layer_maps import LayerMap, resolve_layer_map
from transmamba.transfer.plan import Entries, affine
from transmamba.transfer.students import mamba2_table, mamba_table, transformer_table
from transmamba.transfer.teachers import Translated

NORM = re.compile(r"((stages\.\d+\.)?blocks\.\d+\.)?(norm\d?|post_norm\d|embed_norm|fc_norm|norm_pre)")
NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}
BLOCK = re.compile(r"(?:stages\.\d+\.)?blocks\.\d+\.")


@dataclass
class Table:
    """How a student inherits from one teacher.

    Attributes:
        plan: student name pattern -> (canonical names, axes).
        refused: student tensor -> why it has no counterpart although the table has an entry for it.
        differs: facts of the teacher that the student does not share.
    """

    plan: Entries
    refused: dict[str, str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)


class Student:
    """A student's tensors, and what a module says beyond them."""

    def __init__(self, weights: Weights, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self._module = tensors, weights if isinstance(weights, nn.Module) else None

    def attribute(self, name: str) -> Any:
        """An attribute of the module; None for a state dict."""
        return getattr(self._module, name, None)

    def part(self, name: str) -> nn.Module | None:
        """A submodule, if the student is a module and has it."""
        try:
            return None if self._module is None else self._module.get_submodule(name)
        except AttributeError:
            return None

    def norm(self, name: str) -> str:
        """The kind of a norm: "layer" or "rms". In a state dict a bias shows it."""
        part = self.part(name)
        if part is None:
            return "layer" if f"{name}.bias" in self.tensors else "rms"
        return "rms" if "RMS" in type(part).__name__ else "layer"

    def gated(self, mlp: str) -> bool:
        """Whether fc1 holds a value and a gate."""
        names = f"{mlp}.fc1.weight", f"{mlp}.fc2.weight"
        if not all(name in self.tensors for name in names):
            return False
        first, second = (self.tensors[name].shape for name in names)
        return first[0] == 2 * second[1]

    def activation(self, mlp: str) -> str:
        """The activation of an MLP; those of ours have GELU, gated ones SiLU, unless they say otherwise."""
        return getattr(self.part(mlp), "activation", None) or ("silu" if self.gated(mlp) else "gelu")

    @property
    def blocks(self) -> list[str]:
        """Prefixes of the blocks, such as "blocks.0."."""
        return list(dict.fromkeys(hit[0] for hit in map(BLOCK.match, self.tensors) if hit))

    @property
    def post_norm(self) -> bool:
        """Whether the blocks norm after their residuals."""
        return getattr(self.part("blocks.0"), "placement", "pre") == "post"


def table_for(student: Student, teacher: Translated, layer_map: LayerMap) -> Table:
    """The table of a student and a teacher.

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
    if facts.placement == "post" and not student.post_norm:
        plan = _pre_norm(plan, student, facts.depth, layer_map)
    plan = _place_positions(_norm_before_head(plan, student, teacher), student, teacher)
    table = Table(_in_stages(plan, student, facts.depth, layer_map))
    table.differs += teacher.differs
    if table.plan.get("norm.weight", ("",))[0] == "fc_norm.weight" and facts.pool == "mean":
        _note(table, "pooling: the teacher norms the mean of its patches, the student its tokens")
    _compare_norms(table, student, teacher)
    _compare_mlps(table, student, teacher)
    _compare_biases(table, student, teacher)
    return table


def _as_language(plan: Entries, student: Student) -> Entries:
    """A head over a vocabulary instead of classes, for students with an embedding."""
    if "embedding.weight" not in student.tensors:
        return plan
    return {**plan, "head.weight": ("head.weight", "logit residual")}


def _norm_before_head(plan: Entries, student: Student, teacher: Translated) -> Entries:
    """`plan` for a teacher that norms what its head reads instead of all tokens: CLIP, BEiT, mean-pooled ViTs."""
    if "norm.weight" in teacher or "fc_norm.weight" not in teacher or "fc_norm.weight" in student.tensors:
        return plan
    return plan | affine("norm", "fc_norm", "residual")


def _pre_norm(plan: Entries, student: Student, depth: int, layer_map: LayerMap) -> Entries:
    """`plan` for a student that norms before its branches: what enters a teacher's layer was normed by the one before.

    The norm of the embeddings stays where it is, or becomes the first norm of a student that has no place for it.
    """
    ends = [(leaf, axes) for leaf in ("weight", "bias") for axes in ["residual"]]
    layers = resolve_layer_map(layer_map, len(student.blocks), depth) if student.blocks else {}
    first: Entries = {}
    if "embed_norm.weight" not in student.tensors and layers.get(0) == 0:
        first = {f"blocks.0.norm1.{leaf}": (f"embed_norm.{leaf}", axes) for leaf, axes in ends}
    moved: Entries = {}
    for leaf, axes in ends:
        moved[f"blocks.{{i}}.norm1.{leaf}"] = f"blocks.{{i-1}}.norm2.{leaf}", axes
        moved[f"blocks.{{i}}.norm2.{leaf}"] = f"blocks.{{i}}.norm1.{leaf}", axes
        moved[f"norm.{leaf}"] = f"blocks.{{last}}.norm2.{leaf}", axes
    return first | plan | moved


def _place_positions(plan: Entries, student: Student, teacher: Translated) -> Entries:
    """`plan` with the class rows and the grids of both position tables."""
    if "pos_embed" not in teacher or plan["pos_embed"][1] != "1 token residual":
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
    """`plan` for a pyramid: norms and MLPs of its blocks, norm and head; each stage has a stream of its own width."""
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


def _compare_norms(table: Table, student: Student, teacher: Translated) -> None:
    """Compare the kinds of norms; behind a norm of another kind an MLP is another function."""
    theirs = teacher.architecture.norm
    for name in student.tensors:
        norm, _, leaf = name.rpartition(".")
        if leaf != "weight" or not NORM.fullmatch(norm) or student.norm(norm) == theirs:
            continue
        ours = student.norm(norm)
        before_mlp = norm.endswith("norm2") and f"{norm[:-5]}mlp.fc1.weight" in student.tensors
        if before_mlp:
            reason = f"the student has a {NORMS[ours]} before its MLP, the teacher a {NORMS[theirs]}"
            unit = (f"{norm}.", f"{norm[:-5]}mlp.")
            table.refused |= {other: reason for other in student.tensors if other.startswith(unit)}
        else:
            lost = "mean and biases are" if theirs == "layer" else "uncentred streams are"
            _note(
                table,
                f"norms: the teacher's {NORMS[theirs]} becomes a {NORMS[ours]} with the same gain, its {lost} not kept",
            )


def _note(table: Table, line: str) -> None:
    table.differs += [] if line in table.differs else [line]


def _compare_mlps(table: Table, student: Student, teacher: Translated) -> None:
    """Refuse MLPs with a gate on one side only; note another activation."""
    gated, activation = "blocks.0.mlp.gate.weight" in teacher, teacher.architecture.activation
    for block in student.blocks:
        mlp = f"{block}mlp"
        if f"{mlp}.fc1.weight" not in student.tensors:
            continue
        if student.gated(mlp) != gated:
            kinds = ("gated", "plain") if gated else ("plain", "gated")
            reason = "the teacher's MLP is {}, the student's {}".format(*kinds)
            table.refused |= {name: reason for name in student.tensors if name.startswith(f"{mlp}.")}
        elif "activation" not in teacher.architecture.unknown and student.activation(mlp) != activation:
            _note(table, f"activation: the teacher's MLPs have {activation}, the student's {student.activation(mlp)}")


def _compare_biases(table: Table, student: Student, teacher: Translated) -> None:
    """Refuse matrices whose bias has no place, and with one the rest of its MLP."""
    for name in list(student.tensors):
        part, _, leaf = name.rpartition(".")
        lost = leaf == "weight" and f"{part}.bias" not in student.tensors and _their_bias(table, part, teacher)
        if not lost or name in table.refused or NORM.fullmatch(part):
            continue
        reason = f"the student has no bias here, and the teacher's {lost} would be lost"
        whole = part.rpartition(".")[0] + "." if ".mlp." in name else f"{part}."
        table.refused |= {other: reason for other in student.tensors if other.startswith(whole)}


def _their_bias(table: Table, part: str, teacher: Translated) -> str | None:
    """A bias of the teacher that belongs to a matrix or norm of the student."""
    key = re.sub(r"(?<=blocks\.)\d+(?=\.)", "{i}", part) if not part.startswith("stages.") else part
    entry = table.plan.get(f"{key}.bias")
    if entry is None:
        return None
    names = (re.sub(r"\{[^}]*\}", "0", name) for name in entry[0].split(" + "))
    return next((teacher.sources(name)[0] for name in names if name in teacher), None)


def placed_share(student: Student, left: Mapping[str, str], written: set[str], beyond: Mapping[str, str]) -> float:
    """Return the share of the blocks' tensors, mixers and layers without a teacher layer aside, that is inherited."""
    blocks = (name for name in student.tensors if BLOCK.match(name) and ".mixer." not in name)
    names = [name for name in blocks if name not in left and name not in beyond]
    return sum(name in written for name in names) / len(names) if names else 1.0
