"""Facts that a student does not share with its teacher: noted, or refused where a part would be another function.

An MLP is inherited whole, together with the norm that feeds it, or not at all: without its gate, a bias or the right
kind of norm it computes something else. The norms before a mixer and before the head give at least their gain.
"""

import re
from collections.abc import Mapping
from typing import Any

from transmamba.transfer.student import BLOCK, Student, Table
from transmamba.transfer.teachers import Translated

NORM = re.compile(rf"({BLOCK.pattern})?(norm\d?|post_norm\d|embed_norm|fc_norm|norm_pre)")
READS = {"image": "images", "audio": "audio", "encoder": "text", "decoder": "text"}
NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}


def share_stem(student: Student, teacher: Translated) -> bool:
    """Check that both read images, or both read text, as far as the student has a stem."""
    return student.reads in (None, READS.get(teacher.architecture.kind))


def compare(table: Table, student: Student, teacher: Translated, layers: Mapping[int, int]) -> None:
    """Fill in the table's refusals and differences.

    Args:
        table: the table of a Transformer and a student.
        student: the student.
        teacher: the teacher in canonical form.
        layers: student layer -> teacher layer.
    """
    table.differs += teacher.differs
    if table.plan.get("norm.weight", ("",))[0] == "fc_norm.weight" and teacher.architecture.pool == "mean":
        _note(table, "pooling: the teacher norms the mean of its patches, the student its tokens")
    if not share_stem(student, teacher):
        read = READS[teacher.architecture.kind]
        _note(
            table,
            f"kind: the teacher reads {read}, the student {student.reads}: stems and heads have nothing in common",
        )
    _compare_placement(table, student, teacher)
    _compare_norms(table, student, teacher)
    _compare_mlps(table, student, teacher)
    _compare_attention(table, student, teacher, layers)
    _compare_biases(table, student, teacher)


def _compare_placement(table: Table, student: Student, teacher: Translated) -> None:
    """Refuse norms and MLPs whose norms stand elsewhere; post-norm teachers fit students that norm before."""
    theirs, ours = teacher.architecture.placement, student.placement
    if theirs != ours and (theirs, ours) != ("post", "pre"):
        reason = (
            f"the norms of the teacher's blocks have placement {theirs!r}, the student's {ours!r}: build the student"
            f" with nn.TransformerBlock(..., placement={theirs!r})"
        )
        parts = re.compile(rf"{BLOCK.pattern}(norm\d|post_norm\d|mlp)\.")
        table.refused |= {name: reason for name in student.tensors if parts.match(name)}
    elif theirs != ours:
        _note(table, "placement: the teacher norms after its residuals, the student before its branches")
    if teacher.architecture.parallel and not getattr(student.part("blocks.0"), "parallel", False):
        _note(table, "parallel: the teacher's mixer and MLP read the same stream, the student's one after the other")


def _compare_norms(table: Table, student: Student, teacher: Translated) -> None:
    """Compare the kinds of norms; behind a norm of another kind an MLP is another function."""
    theirs, known = teacher.architecture.norm, "eps" not in teacher.architecture.unknown
    for name in student.tensors:
        norm, _, leaf = name.rpartition(".")
        if leaf != "weight" or not NORM.fullmatch(norm):
            continue
        eps = getattr(student.part(norm), "eps", None)
        if known and eps is not None and eps != teacher.architecture.eps:
            _note(table, f"eps: the teacher's norms have {teacher.architecture.eps:g}, the student's {eps:g}")
        if student.norm(norm) == theirs:
            continue
        ours = student.norm(norm)
        before_mlp = norm.endswith("norm2") and f"{norm[:-5]}mlp.fc1.weight" in student.tensors
        if before_mlp:
            reason = f"the student has a {NORMS[ours]} before its MLP, the teacher a {NORMS[theirs]}"
            _refuse_mlp(table, student, norm[:-5], reason)
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
            _refuse_mlp(table, student, block, "the teacher's MLP is {}, the student's {}".format(*kinds))
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
        if ".mlp." in name:
            _refuse_mlp(table, student, part.rpartition("mlp.")[0], reason)
        else:
            table.refused |= {other: reason for other in student.tensors if other.startswith(f"{part}.")}


def _refuse_mlp(table: Table, student: Student, block: str, reason: str) -> None:
    """Refuse an MLP and the norm before it, which is for nothing else."""
    unit = (f"{block}mlp.", f"{block}norm2.")
    table.refused |= {name: reason for name in student.tensors if name.startswith(unit)}


def _their_bias(table: Table, part: str, teacher: Translated) -> str | None:
    """Return a bias of the teacher that belongs to a matrix or norm of the student."""
    key = re.sub(r"(?<=blocks\.)\d+(?=\.)", "{i}", part) if not part.startswith("stages.") else part
    entry = table.plan.get(f"{key}.bias")
    if entry is None:
        return None
    names = (re.sub(r"\{[^}]*\}", "0", name) for name in entry[0].split(" + "))
    return next((teacher.sources(name)[0] for name in names if name in teacher), None)


def _compare_attention(table: Table, student: Student, teacher: Translated, layers: Mapping[int, int]) -> None:
    """Refuse attention that the student's own would compute with other facts."""
    for layer, source in layers.items():
        for name in ("attn", "mixer"):
            ours: Any = student.part(f"blocks.{layer}.{name}")
            if not hasattr(ours, "qkv") or not hasattr(ours, "softcap"):
                continue
            other = _other_facts(ours, teacher, source)
            if other:
                reason = f"the student's attention differs from the teacher's in {', '.join(other)}"
                part = f"blocks.{layer}.{name}."
                table.refused |= {key: reason for key in student.tensors if key.startswith(part)}


def _other_facts(ours: Any, teacher: Translated, source: int) -> list[str]:
    """List the known facts in which an attention module differs from one layer of the teacher."""
    facts, block = teacher.architecture, f"blocks.{source}.attn."
    rope = facts.ropes[source] if facts.ropes else None
    pairs: dict[str, tuple[Any, Any]] = {
        "the causal mask": (facts.causal, ours.causal),
        "query and key norms": (block + "q_norm.weight" in teacher, ours.q_norm is not None),
        "relative positions": (block + "relative_bias" in teacher, ours.relative_bias is not None),
        "the cap on scores": (facts.softcap, ours.softcap),
    }
    if facts.head_dim is not None:
        scale = facts.head_dim**-0.5 if facts.scale is None else facts.scale
        groups = (facts.heads or 1) // (facts.kv_heads or 1), ours.heads // ours.kv_heads
        pairs |= {"channels of a head": (facts.head_dim, ours.head_dim), "query heads per key head": groups}
        pairs |= {"the scale of scores": (round(scale, 9), round(ours.scale, 9))}
    if "ropes" not in facts.unknown:
        pairs["rotary positions"] = _rope(rope), _rope(None if ours.rotary is None else ours.rotary.rope)
    if "windows" not in facts.unknown:
        pairs["the window"] = (facts.windows[source] if facts.windows else None), ours.window
    return [part for part, (theirs, own) in pairs.items() if theirs != own]


def _rope(rope: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Complete rotary parameters with the defaults that were left out."""
    if rope is None:
        return None
    given = {key: value for key, value in rope.items() if key != "grid" and value is not None}
    return {"rope_type": "default", "partial_rotary_factor": 1.0, **given}
