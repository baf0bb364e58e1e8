"""Inherit a Transformer's weights: the neurons that matter, in every tensor alike."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from transmamba._checkpoint import Weights, named_tensors
from transmamba._typing import typed
from transmamba.transfer.attention import plan_attention
from transmamba.transfer.circuits import AttentionInit
from transmamba.transfer.layer_maps import LayerMap
from transmamba.transfer.matching import Matches, Plan, match
from transmamba.transfer.plans import SSM_PARAMETERS
from transmamba.transfer.presets import find_preset, place_class_row
from transmamba.transfer.report import SubcloneReport
from transmamba.transfer.selection import Importance, choose, measure
from transmamba.transfer.tensors import check_source, check_target
from transmamba.transfer.writes import Write, plan_write


class Prepared(NamedTuple):
    """A checked transfer: nothing in the student has changed yet."""

    writes: list[Write]
    skipped: dict[str, str]
    kept: dict[str, tuple[int, ...]]
    layers: dict[int, int]


@typed
def subclone(
    teacher: Weights,
    student: Weights,
    importance: Importance,
    *,
    plan: Plan | None = None,
    layer_map: LayerMap = "early",
    rescale: Literal["sqrt"] | None = None,
    exclude: Sequence[str] | None = None,
    grow: bool = False,
    ssm_from: AttentionInit | Weights | None = None,
) -> SubcloneReport:
    """Initialise the student from the teacher's most important neurons, in place.

    Each axis name of the plan has one set of neurons, shared by all tensors on that axis: one for the whole residual
    stream, one per MLP. The set keeps the best of the teacher's neurons in their old order, so equal sizes give an
    exact copy. A neuron's score is the mean over all scored weights attached to it, in any tensor of the plan.
    Everything is checked before the first number is written.

    Args:
        teacher: a module, a state dict, or `open_safetensors(...)`.
        student: a module or a state dict; written in its own dtype, on its own device.
        importance: higher is kept. Scores by teacher tensor name, one per weight (or 1 along an axis); scores by axis
            name, one per neuron; or a function (name, tensor) -> scores such as `magnitude_importance`.
        plan: student name pattern -> (teacher name patterns, axes); by default the preset that fits the names.
        layer_map: which teacher layer a student layer inherits: "early" the first ones (v2 of the paper), "uniform",
            "drop_middle" (arXiv 2312.09299), or student layer -> teacher layer. For glyphs "early" did best, for a text
            encoder "uniform" did far better (docs/results.md).
        rescale: "sqrt" multiplies matrices that lose inputs by sqrt(inputs before / after), as 2312.09299 does.
        exclude: name patterns of student tensors to leave alone; by default `SSM_PARAMETERS`, unless the teacher is a
            Mamba. `[*SSM_PARAMETERS, "head.*"]` adds to the default.
        grow: let a wider student keep the initialisation of what the teacher does not have.
        ssm_from: where the SSM parameters come from, after all the rest: another Mamba (the paper's recipe for language
            and video), or the teacher's own attention, `AttentionInit(heads=..., length=...)`. By default they keep
            their initialisation.

    Raises:
        ValueError: names, shapes, layers or scores do not fit, or the student is wider and `grow` is False.
        TypeError: a tensor is quantised or sharded.

    Reference:
        TransMamba, arXiv 2502.15130, section on weight subcloning. What the paper leaves open: docs/decisions.md.

    Example:
        >>> teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)
        >>> plan = {"weight": ("weight", "class input"), "bias": ("bias", "class")}
        >>> report = subclone(teacher, student, {"input": torch.tensor([0.5, 0.1, 0.9])}, plan=plan)
        >>> report.kept, bool((student.weight == teacher.weight[:, [0, 2]]).all())
        ({'input': (0, 2)}, True)
    """
    source, target = named_tensors(teacher), _floating(student)
    left = _excluded(target, source, exclude)
    chosen = place_class_row(find_preset(target, source, layer_map), student) if plan is None else plan
    found = match(chosen, target, source, layer_map)
    if plan is not None:
        _refuse_unresolved(found, target, source)
    prepared = prepare(source, target, left, found, importance, rescale=rescale, grow=grow)
    if ssm_from is not None:
        own = [pattern for pattern in exclude or () if pattern not in SSM_PARAMETERS]
        mixers = {name: p for name, p in target.items() if not any(fnmatchcase(name, pattern) for pattern in own)}
        _add_ssm(ssm_from, prepared, source, mixers, importance, layer_map, grow)
    return _write(prepared, target)


def prepare(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    left: Mapping[str, str],
    found: Matches,
    importance: Importance,
    rescale: str | None = None,
    grow: bool = False,
) -> Prepared:
    """Check a transfer and say what it will write."""
    copies = [copy for copy in found.copies if copy.student not in left]
    for copy in copies:
        check_target(copy.student, target[copy.student])
        check_source(copy.teacher, source)
    geometry = choose(measure(copies, source, target), copies, source, importance, grow=grow)
    writes, skipped = [], {**found.beyond, **found.absent, **left}
    for copy in copies:
        write = plan_write(copy, geometry, source, target[copy.student], rescale)
        if isinstance(write, str):
            skipped[copy.student] = write
        else:
            writes.append(write)
    kept = {name: tuple(index.tolist()) for name, index in geometry.kept.items() if len(index) < geometry.teacher[name]}
    return Prepared(writes, skipped, kept, found.layers)


def _add_ssm(
    ssm_from: AttentionInit | Weights,
    prepared: Prepared,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    importance: Importance,
    layer_map: LayerMap,
    grow: bool,
) -> None:
    """Check where the SSM parameters come from, and append their writes."""
    if isinstance(ssm_from, AttentionInit):
        norms, kept = _norms_after(prepared.writes, target), prepared.kept.get("residual")
        prepared.writes.extend(plan_attention(ssm_from, source, target, layer_map, kept, norms))
        return
    mamba = named_tensors(ssm_from)
    ssm = {name: tensor for name, tensor in target.items() if any(fnmatchcase(name, p) for p in SSM_PARAMETERS)}
    found = match(find_preset(ssm, mamba, layer_map), ssm, mamba, layer_map)
    # scores by name are the Transformer's; a function scores any tensor
    scores: Importance = {} if isinstance(importance, Mapping) else importance
    inherited = prepare(mamba, ssm, {}, found, scores, None, grow)
    prepared.writes.extend(inherited.writes)
    prepared.kept.update({f"ssm_from {name}": kept for name, kept in inherited.kept.items()})


def _norms_after(writes: Sequence[Write], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norms before the mixers as they will be."""
    norms = {name: tensor.detach() for name, tensor in target.items() if ".norm1." in name}
    norms.update(
        {write.student: torch.cat(list(write.blocks())) for write in writes if write.student in norms and write.whole}
    )
    return {name: norm.float().cpu() for name, norm in norms.items()}


@torch.no_grad()
def _write(prepared: Prepared, target: Mapping[str, Tensor]) -> SubcloneReport:
    written = {write.student for write in prepared.writes}
    skipped = {name: reason for name, reason in prepared.skipped.items() if name not in written}
    owner: dict[tuple[int, ...], str] = {}
    for write in prepared.writes:
        first = owner.setdefault(_memory(target[write.student]), write.student)
        if first != write.student:
            skipped[write.student] = f"tied to {first}, which is written"
    writes = [write for write in prepared.writes if write.student not in skipped]
    copied: dict[str, str] = {}
    sliced: dict[str, str] = {}
    for write in writes:
        write.apply(target[write.student])
        if write.exact:
            copied[write.student] = write.teacher
        else:
            part = f"{write.teacher}: {write.change}"
            sliced[write.student] = f"{sliced[write.student]}; {part}" if write.student in sliced else part
    for name in target:
        if name not in {*copied, *sliced, *skipped}:
            twin = owner.get(_memory(target[name]))
            skipped[name] = f"tied to {twin}, which is written" if twin else "the plan has no entry for it"
    distinct = {_memory(tensor): tensor.numel() for tensor in target.values()}
    fraction = sum(write.numbers for write in writes) / max(sum(distinct.values()), 1)
    return SubcloneReport(copied, sliced, skipped, prepared.kept, prepared.layers, fraction)


def _floating(student: Weights) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named_tensors(student).items() if tensor.is_floating_point()}


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """Equal for two names of one tensor."""
    return (tensor.data_ptr() if tensor.numel() and not tensor.is_meta else id(tensor), *tensor.shape)


def _excluded(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], exclude: Sequence[str] | None
) -> dict[str, str]:
    """The student tensors to leave alone, with the pattern that says so."""
    if exclude is None:
        patterns: Sequence[str] = () if any(fnmatchcase(name, "*A_log") for name in source) else SSM_PARAMETERS
    else:
        patterns = exclude
        for pattern in patterns:
            if pattern not in SSM_PARAMETERS and not any(fnmatchcase(name, pattern) for name in target):
                raise ValueError(
                    f"exclude pattern {pattern!r} matches no student tensor: expected names such as"
                    f" {', '.join(list(target)[:4])}"
                )
    why = "SSM parameter" if exclude is None else "excluded"
    hits = ((name, next((p for p in patterns if fnmatchcase(name, p)), None)) for name in target)
    return {name: f"{why}, {pattern}" for name, pattern in hits if pattern is not None}


def _refuse_unresolved(found: Matches, target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """A plan that somebody wrote must fit; presets name more than one model has."""
    if found.unused:
        raise ValueError(
            f"the plan names student tensors that do not exist: {', '.join(found.unused[:5])}; the student has"
            f" {', '.join(list(target)[:5])}, ..."
        )
    if found.absent:
        name, reason = next(iter(found.absent.items()))
        raise ValueError(f"the plan for {name}: {reason}; it has {', '.join(list(source)[:5])}, ...")
