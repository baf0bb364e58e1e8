"""Readouts of a pyramid in closed form, stage after stage, against a teacher of one grid and width."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._layer_maps import LayerMap
from transmamba._typing import typed
from transmamba.ops.resize import interpolate_grid, leave_out
from transmamba.transfer.closed_form.fit_report import FitReport
from transmamba.transfer.closed_form.layerwise import fit_layers
from transmamba.transfer.closed_form.lockstep import Lockstep, ascending_map
from transmamba.transfer.closed_form.spread import principal_axes
from transmamba.transfer.closed_form.stage_inputs import StageInput
from transmamba.transfer.closed_form.streams import Batch, blocks_of, call, evaluating

FIXED = {"layers", "tokens", "projection"}  # of `fit_layers`, which each stage has of its own


@typed
def fit_stages(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[Batch],
    *,
    projections: Sequence[Float[Tensor, "_ teacher_dim"]] | None = None,
    layer_map: LayerMap = "uniform",
    inputs: bool = True,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> FitReport:
    """Solve the readouts of a student in stages, such as `VMamba`, by `fit_layers` for one stage after the other.

    The targets of a stage are the teacher's patches on the stage's own grid (bilinear interpolation, with antialiasing
    where the grid is coarser) in the stage's own width. The teacher's class and register tokens are left out. Before
    each stage, the last linear map of the stem or downsampling is solved as well, so that the stage begins at the
    teacher's stream, and gain and shift of a norm behind that map. Ours, not the paper's.

    Args:
        teacher: an image model with `blocks` and `forward_features`, such as `models.from_transformer` gives.
        student: a model with a stem `patch_embed` and with `stages`, each with `blocks` and, but for the last, a
            `downsample`; its `forward_features` names the `grids` of its layers.
        batches: inputs of both models, all of one image size; they are iterated over several times.
        projections: from the teacher's stream to that of each stage. By default the first of the teacher's principal
            axes. After `subclone` use the neurons of each stage, which its report names where a stage is narrower:
            torch.eye(dim)[list(report.kept.get(f"residual.{i}", range(dim)))].
        layer_map: the teacher layer of each layer of the student, counted through all stages, as for `fit_layers`.
        inputs: solve the end of the stem and of each downsampling; otherwise they stay as they are.
        checkpoint: folder for a folder per stage, as for `fit_layers`; stem and downsamplings are solved again.
        options: the other arguments of `fit_layers`, alike for all stages; a `process_group` wants `projections`,
            because each process would find other axes.

    Returns:
        one row per layer, counted through all stages; `inputs` has the R2 at the beginning of each stage, `left_out`
        the teacher's tokens other than patches.

    Raises:
        ValueError: the student has no stages, a stage is wider than the teacher and has no projection, a stem or
            downsampling does not end in a linear map and a norm, an argument belongs to single layers, or `fit_layers`
            refuses something.

    Example:
        >>> import torch
        >>> from transmamba.models import ViT, vmamba_v2
        >>> teacher = ViT(32, 8, dim=12, depth=4, heads=3, num_classes=5)
        >>> student = vmamba_v2((4, 8), (1, 2), num_classes=5)
        >>> report = fit_stages(teacher, student, [torch.randn(4, 3, 32, 32)], progress=False)
        >>> [(row.layer, row.teacher_layer, row.tokens) for row in report.rows]
        [(0, 0, 256), (1, 2, 64), (2, 3, 64)]
    """
    stages = _stages(student)
    if unfit := sorted(FIXED & set(options)):
        raise ValueError(f"fit_stages has no {', '.join(unfit)}: every stage gets its own, and all layers are solved")
    if projections is None and options.get("process_group") is not None:
        raise ValueError("with a process_group, give projections= that are the same in all processes")
    theirs, ours, dims = _facts(teacher, student, batches)
    widths = [dims[stage.begin] for stage in stages]
    chosen = _axes(teacher, batches, widths, theirs.last.shape[-1]) if projections is None else projections
    _check_rows(chosen, widths)
    layers = ascending_map(layer_map, len(dims), len(blocks_of(teacher, "teacher")))
    rows, begun, extra = [], [], tuple(theirs.extra)
    for index, (stage, projection) in enumerate(zip(stages, chosen, strict=True)):
        followed = layers[stage.begin : stage.begin + len(stage.blocks)]
        tokens = _resampled(extra, theirs.grid, ours[stage.begin])
        if inputs:
            begun.append(_solve_input(teacher, stage, batches, followed, _projected(tokens, projection), options))
        folder = None if checkpoint is None else Path(checkpoint) / f"stage_{index}{'' if inputs else '_alone'}"
        fitted: Any = {"projection": projection, "tokens": tokens, "layer_map": followed, "checkpoint": folder}
        part = fit_layers(teacher, stage, batches, **fitted, **options)
        rows += [row._replace(layer=row.layer + stage.begin) for row in part.rows]
    return FitReport(tuple(rows), extra, tuple(begun))


class _Stage(nn.Module):
    """A whole model, of which only the blocks of one stage are followed; `before` leads into it."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList, before: nn.Module | None, begin: int) -> None:
        super().__init__()
        self.model, self.blocks, self.before, self.begin = model, blocks, before, begin

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.model(*arguments, **named)


def _stages(student: Any) -> list[_Stage]:
    stages = getattr(student, "stages", None)
    if not isinstance(stages, nn.ModuleList) or not all(hasattr(stage, "blocks") for stage in stages) or not stages:
        raise ValueError(
            f"student is a {type(student).__name__} without `stages` of `blocks`: expected a pyramid, such as VMamba;"
            " fit_layers solves a model whose blocks are in one list"
        )
    found: list[_Stage] = []
    before = getattr(student, "patch_embed", None)
    for stage in stages:
        begin = found[-1].begin + len(found[-1].blocks) if found else 0
        found.append(_Stage(student, stage.blocks, before, begin))  # type: ignore[arg-type]
        before = getattr(stage, "downsample", None)
    return found


def _solve_input(
    teacher: nn.Module,
    stage: _Stage,
    batches: Iterable[Batch],
    layer_map: Sequence[int],
    view: Callable[[Tensor], Tensor],
    options: Mapping[str, Any],
) -> float:
    """Solve the end of the module before a stage, with those arguments of `fit_layers` that concern it."""
    if not isinstance(stage.before, nn.Module):
        raise ValueError("no module leads into a stage by the name `patch_embed` or `downsample`: say inputs=False")
    with evaluating(teacher, stage):
        streams = Lockstep(teacher, stage, batches, layer_map, keep=False)
        module = StageInput(stage.before, streams, view, options.get("process_group"))
        products = options.get("products", torch.float32)
        return module.solve(options.get("ridge", 1e-3), options.get("min_tokens"), products)


def _facts(teacher: Any, student: Any, batches: Iterable[Batch]) -> tuple[Any, list[Sequence[int]], list[int]]:
    """Return the teacher's features for one sample, and grid and width of each of the student's layers."""
    if iter(batches) is batches or (first := next(iter(batches), None)) is None:
        raise ValueError("batches must hold at least one, and be iterated over several times: give a list or a loader")
    with evaluating(teacher, student):
        theirs, ours = (call(model.forward_features, _sample(first)) for model in (teacher, student))
    grids = list(ours.grids) or [ours.grid] * len(ours.layers)
    return theirs, grids, [layer.shape[-1] for layer in ours.layers]


def _sample(batch: Batch) -> Batch:
    """Return the first sample of a batch."""
    if isinstance(batch, Tensor):
        return batch[:1]
    if isinstance(batch, Mapping):
        return {name: value[:1] if isinstance(value, Tensor) else value for name, value in batch.items()}
    return [value[:1] if isinstance(value, Tensor) else value for value in batch]


def _axes(teacher: nn.Module, batches: Iterable[Batch], dims: Sequence[int], width: int) -> list[Tensor]:
    if max(dims) > width:
        raise ValueError(
            f"the student's stages have {list(dims)} channels, the teacher {width}: build a narrower student, or say"
            " with projections= which of the teacher's channels the stages hold"
        )
    axes = principal_axes(teacher, batches, max(dims))
    return [axes[:dim] for dim in dims]


def _check_rows(projections: Sequence[Tensor], dims: Sequence[int]) -> None:
    rows = [len(projection) for projection in projections]
    if rows != list(dims):
        raise ValueError(
            f"the projections have {rows} rows, the student's stages {list(dims)} channels: give one for each stage"
        )


def _projected(view: Callable[[Tensor], Tensor], projection: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tokens: view(tokens) @ projection.to(tokens).T


def _resampled(extra: Sequence[int], theirs: Sequence[int], ours: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Return the way from the teacher's tokens to its patches on another grid."""

    def view(tokens: Tensor) -> Tensor:
        patches = leave_out(tokens, sorted(extra))
        if tuple(theirs) == tuple(ours):
            return patches
        return interpolate_grid(patches, theirs, ours, "linear", antialias=True)

    return view
