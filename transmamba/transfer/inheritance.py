"""Inherit a Transformer's weights: the neurons that matter, in every tensor alike."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from transmamba._checkpoint import Weights, named_tensors
from transmamba._layer_maps import LayerMap
from transmamba._typing import typed
from transmamba.transfer.attention_weights import AttentionInit
from transmamba.transfer.counterparts import table_for
from transmamba.transfer.plan import Matches, Plan, match
from transmamba.transfer.refusals import excluded_names, refuse_debris, refuse_unresolved
from transmamba.transfer.report import SubcloneReport
from transmamba.transfer.select import keep_neurons, measure_axes
from transmamba.transfer.source import Importance, Source
from transmamba.transfer.ssm_start import plan_attention
from transmamba.transfer.student import Student, Table
from transmamba.transfer.students import SSM_PARAMETERS
from transmamba.transfer.teachers import Translated, translate, translate_for
from transmamba.transfer.tensor_checks import check_kind, check_target
from transmamba.transfer.write import Write, plan_write

# the part of a composite teacher that a student reads
KINDS = {"images": "image", "text": "text"}


class Prepared(NamedTuple):
    """A checked transfer: nothing in the student has changed yet."""

    writes: list[Write]
    skipped: dict[str, str]
    kept: dict[str, tuple[int, ...]]
    layers: dict[int, int]
    used: set[str]


@typed
def subclone(
    teacher: Weights,
    student: Weights,
    importance: Importance,
    *,
    family: str | None = None,
    plan: Plan | None = None,
    layer_map: LayerMap | None = None,
    rescale: Literal["sqrt"] | None = None,
    exclude: Sequence[str] | None = None,
    grow: bool = False,
    partial: bool = False,
    ssm_from: AttentionInit | Weights | None = None,
) -> SubcloneReport:
    """Initialise the student from the teacher's most important neurons, in place.

    The teacher is translated into canonical form first (`translate`), so that every tensor is known by its role:
    LayerScale, multipliers and offsets are folded into the weights. An MLP is inherited whole or not at all.

    Each axis name of the plan has one set of neurons, shared by all tensors on that axis: one for the whole residual
    stream, one per MLP. The set keeps the best of the teacher's neurons in their old order, so equal sizes give an
    exact copy. A neuron's score is the mean over all scored weights attached to it, in any tensor of the plan.
    Everything is checked before the first number is written.

    Args:
        teacher: a module, a state dict, `open_safetensors(...)`, or the result of `translate`.
        student: a module or a state dict; written in its own dtype, on its own device.
        importance: higher is kept. Scores by teacher tensor name, one per weight (or 1 along an axis); scores by axis
            name, one per neuron; or a function (name, tensor) -> scores such as `magnitude_importance`.
        family: name of the teacher's family, where its tensors fit two (`translate`).
        plan: student name pattern -> (teacher name patterns, axes), for models of your own. The teacher's names are
            then its stored ones, or canonical ones if `teacher` is translated; nothing is folded or compared.
        layer_map: which teacher layer a student layer inherits: "early" the first ones (v2 of the paper), "uniform",
            "drop_middle" (arXiv 2312.09299), "proportional", or student layer -> teacher layer; `distill.match_layers`
            has the same names. The default is "early", and for a pyramid such as VMamba, whose blocks count through its
            stages, "uniform": "early" would not reach the last stage of one deeper than its teacher. For glyphs "early"
            did best, for a text encoder "uniform" did far better (docs/results.md).
        rescale: "sqrt" multiplies matrices that lose inputs by sqrt(inputs before / after), as 2312.09299 does.
        exclude: name patterns of student tensors to leave alone; by default `SSM_PARAMETERS`, unless the teacher is a
            Mamba. `[*SSM_PARAMETERS, "head.*"]` adds to the default.
        grow: let a wider student keep the initialisation of neurons that the teacher does not have.
        partial: accept that less than half of the tensors of the student's blocks have a counterpart.
        ssm_from: where the SSM parameters come from, after all the rest: another Mamba (the paper's recipe for language
            and video), or the teacher's own attention, `AttentionInit(heads=..., length=...)`. By default they keep
            their initialisation.

    Raises:
        ValueError: the teacher cannot be translated; names, shapes, layers or scores do not fit; the student is wider
            and `grow` is False; or too little of it has a counterpart and `partial` is False.
        TypeError: a tensor is quantised or sharded.

    Reference:
        TransMamba, arXiv 2502.15130, section on weight subcloning. For details that the paper leaves open see
        docs/decisions.md.

    Example:
        >>> teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)
        >>> plan = {"weight": ("weight", "class input"), "bias": ("bias", "class")}
        >>> report = subclone(teacher, student, {"input": torch.tensor([0.5, 0.1, 0.9])}, plan=plan)
        >>> report.kept, bool((student.weight == teacher.weight[:, [0, 2]]).all())
        ({'input': (0, 2)}, True)
    """
    target = _numbers(student)
    ours = Student(student, target)
    layer_map = _default_layers(ours) if layer_map is None else layer_map
    if plan is None:
        source = Source(translate_for(KINDS.get(ours.reads or ""), teacher, family))
        table = table_for(ours, cast(Translated, source.translated), layer_map)
    else:
        source, table = Source(translate(teacher, family) if family is not None else teacher), Table(dict(plan))
    left = excluded_names(target, source, exclude)
    found = match(table.plan, target, source, layer_map)
    if plan is not None:
        refuse_unresolved(found, target, source)
    prepared = prepare(source, target, left, found, importance, rescale=rescale, grow=grow, refused=table.refused)
    if plan is None and not partial:
        written = {write.student for write in prepared.writes}
        refuse_debris(ours, source, written, prepared.skipped, left, found.beyond)
    if ssm_from is not None:
        own = [pattern for pattern in exclude or () if pattern not in SSM_PARAMETERS]
        mixers = {name: p for name, p in target.items() if not any(fnmatchcase(name, pattern) for pattern in own)}
        attention = source if source.translated is not None else Source(translate(teacher))
        _add_ssm(ssm_from, prepared, attention, mixers, importance, layer_map, grow, table)
    return _write(prepared, target, source, table)


@typed
def plan_for(
    teacher: Weights, student: Weights, *, family: str | None = None, layer_map: LayerMap | None = None
) -> dict[str, tuple[str, str]]:
    """Return the plan by which `subclone` would inherit, to read, change and give back.

    Its teacher names are canonical: give it together with the translated teacher,
    `subclone(translate(teacher), student, importance, plan=plan)`.

    Args:
        teacher: as for `subclone`.
        student: as for `subclone`.
        family: as for `subclone`.
        layer_map: as for `subclone`; it matters to students in stages.

    Raises:
        ValueError: the teacher cannot be translated.

    Example:
        >>> from transmamba.models import VisionMamba, ViT
        >>> size = dict(img_size=8, patch_size=4, dim=12, depth=1)
        >>> plan_for(ViT(**size, heads=3), VisionMamba(**size))["blocks.{i}.mlp.fc1.weight"]
        ('blocks.{i}.mlp.up.weight', 'hidden.{i} residual')
    """
    target = _numbers(student)
    ours = Student(student, target)
    layer_map = _default_layers(ours) if layer_map is None else layer_map
    translated = translate_for(KINDS.get(ours.reads or ""), teacher, family)
    table = table_for(ours, translated, layer_map)
    found = match(table.plan, target, Source(translated), layer_map)
    there = {copy.student for copy in found.copies if copy.student not in table.refused}
    unused = match(table.plan, there, Source(translated), layer_map).unused
    return {key: entry for key, entry in table.plan.items() if key not in unused}


def _default_layers(student: Student) -> LayerMap:
    return "uniform" if any(block.startswith("stages.") for block in student.blocks) else "early"


def prepare(
    source: Source,
    target: Mapping[str, Tensor],
    left: Mapping[str, str],
    found: Matches,
    importance: Importance,
    rescale: str | None = None,
    grow: bool = False,
    refused: Mapping[str, str] | None = None,
) -> Prepared:
    """Check a transfer, and list its writes."""
    reasons = {**(refused or {}), **left}
    copies = [copy for copy in found.copies if copy.student not in reasons]
    for copy in copies:
        check_target(copy.student, target[copy.student])
        source.check(copy.teacher)
        check_kind(source.label(copy.teacher), source.is_complex(copy.teacher), copy.student, target[copy.student])
    sizes = keep_neurons(measure_axes(copies, source, target), copies, source, importance, grow=grow)
    writes, skipped = [], {**found.beyond, **found.absent, **reasons}
    for copy in copies:
        write = plan_write(copy, sizes, source, target[copy.student], rescale)
        if isinstance(write, str):
            skipped[copy.student] = write
        else:
            writes.append(write)
    kept = {name: tuple(index.tolist()) for name, index in sizes.kept.items() if len(index) < sizes.teacher[name]}
    used = {copy.teacher for copy in copies if copy.student not in skipped}
    return Prepared(writes, skipped, kept, found.layers, used)


def _add_ssm(
    ssm_from: AttentionInit | Weights,
    prepared: Prepared,
    source: Source,
    target: Mapping[str, Tensor],
    importance: Importance,
    layer_map: LayerMap,
    grow: bool,
    table: Table,
) -> None:
    """Check where the SSM parameters come from, and append their writes."""
    if isinstance(ssm_from, AttentionInit):
        norms, kept = _norms_after(prepared.writes, target), prepared.kept.get("residual")
        started = plan_attention(ssm_from, source, target, layer_map, kept, norms)
        prepared.writes.extend(started.writes)
        prepared.used.update(started.used)
        table.differs += started.differs
        return
    mamba = translate(ssm_from)
    if mamba.architecture.kind != "ssm":
        raise ValueError(f"ssm_from is a Transformer ({mamba.family}), which has no SSM parameters: expected a Mamba")
    ssm = {name: tensor for name, tensor in target.items() if any(fnmatchcase(name, p) for p in SSM_PARAMETERS)}
    found = match(table_for(Student(ssm, ssm), mamba, layer_map).plan, ssm, mamba, layer_map)
    # scores by name are the Transformer's; a function scores any tensor
    scores: Importance = {} if isinstance(importance, Mapping) else importance
    inherited = prepare(Source(mamba), ssm, {}, found, scores, None, grow)
    prepared.writes.extend(inherited.writes)
    prepared.kept.update({f"ssm_from {name}": kept for name, kept in inherited.kept.items()})


def _norms_after(writes: Sequence[Write], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values that the norm before each mixer will have after the planned writes."""
    norms = {name: tensor.detach() for name, tensor in target.items() if ".norm1." in name}
    norms.update(
        {write.student: torch.cat(list(write.blocks())) for write in writes if write.student in norms and write.whole}
    )
    return {name: norm.float().cpu() for name, norm in norms.items()}


@torch.no_grad()
def _write(prepared: Prepared, target: Mapping[str, Tensor], source: Source, table: Table) -> SubcloneReport:
    written = {write.student for write in prepared.writes}
    skipped = {name: reason for name, reason in prepared.skipped.items() if name not in written}
    owner: dict[tuple[int, ...], str] = {}
    origin: dict[str, tuple[str, str]] = {}
    for write in prepared.writes:
        first = owner.setdefault(_memory(target[write.student]), write.student)
        origin.setdefault(write.student, (write.teacher, write.change))
        if first != write.student:
            skipped[write.student] = f"tied to {first}, which is written"
            if origin[first] != origin[write.student]:
                table.differs.append(f"tied: {write.student} is {first} in the student, another table in the teacher")
    writes = [write for write in prepared.writes if write.student not in skipped]
    for write in writes:
        write.apply(target[write.student])
    copied, sliced = _sort(writes, target)
    for name in target:
        if name not in {*copied, *sliced, *skipped}:
            twin = owner.get(_memory(target[name]))
            skipped[name] = f"tied to {twin}, which is written" if twin else "the plan has no entry for it"
    distinct = {_memory(tensor): tensor.numel() for tensor in target.values()}
    return SubcloneReport(
        copied,
        sliced,
        skipped,
        prepared.kept,
        prepared.layers,
        sum(write.numbers for write in writes) / max(sum(distinct.values()), 1),
        None if source.translated is None else source.translated.family,
        tuple(table.differs),
        source.unused(prepared.used),
    )


def _sort(writes: Sequence[Write], target: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
    """Split off the tensors that hold every number of one stored tensor from those with changed values."""
    parts: dict[str, list[Write]] = {}
    for write in writes:
        parts.setdefault(write.student, []).append(write)
    copied: dict[str, str] = {}
    sliced: dict[str, str] = {}
    for name, of_one in parts.items():
        whole = sum(write.numbers for write in of_one) == target[name].numel()
        if whole and all(write.exact for write in of_one) and len({write.teacher for write in of_one}) == 1:
            copied[name] = of_one[0].teacher
        else:
            sliced[name] = "; ".join(f"{write.teacher}: {write.change}" for write in of_one)
    return copied, sliced


def _numbers(student: Weights) -> dict[str, Tensor]:
    """Return the student's tensors of real or complex numbers."""
    tensors = named_tensors(student).items()
    return {name: tensor for name, tensor in tensors if tensor.is_floating_point() or tensor.is_complex()}


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """Return a key that is equal for two names of one tensor."""
    return (tensor.data_ptr() if tensor.numel() and not tensor.is_meta else id(tensor), *tensor.shape)
