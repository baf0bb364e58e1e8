"""Solve a student's readouts against a teacher's stream, layer after layer, without a gradient."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from transmamba._layer_maps import LayerMap
from transmamba._typing import typed
from transmamba.transfer.closed_form.fit_report import FitReport, Saved
from transmamba.transfer.closed_form.layer_fit import LayerFit, Target, View, Weighting
from transmamba.transfer.closed_form.streams import Batch, counted


@typed
def fit_layers(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: Sequence[int] | None = None,
    layer_map: LayerMap = "uniform",
    target: Target = "stream",
    mlp: bool | None = None,
    projection: Float[Tensor, "student_dim teacher_dim"] | None = None,
    tokens: View | None = None,
    ridge: float = 1e-3,
    min_tokens: int | None = None,
    weighting: Weighting = "equal",
    products: torch.dtype = torch.float32,
    keep_streams: bool = True,
    checkpoint: str | Path | None = None,
    process_group: ProcessGroup | None = None,
    progress: bool = True,
) -> FitReport:
    """Solve the output projection of a student's mixers by ridge regression, in place, from the bottom to the top.

    With S the student's own stream before a block, T the teacher's, and z the input of the mixer's output projection W
    when the mixer gets norm(S), W minimises |z W - (T + attention(norm T) - S)|^2. The target is the difference to the
    teacher's stream, so that errors of the layers below are corrected as far as possible. The mixers keep their inner
    weights, random ones included; teacher-forced steps beforehand (`mixer_pairs`) help, on texts and on images.
    Then S passes through the block, and the next block is solved. The fit belongs to its text or pictures: mix kinds.

    Both models are backbones with `blocks`, called as block(tokens, *context) with the same context for all, as ours
    and those of `models.from_transformer` are. In a block, the mixer is the module named by `mixer_name`, or else
    `mixer` or `attn`; in the mixer the output projection is `out_proj` or `proj`, or else its last linear layer; in
    `mlp` the second matrix is `fc2` or else the last one. A mask given to the student's blocks (`mask`) leaves tokens
    out.

    Args:
        teacher: the model to follow.
        student: the model to solve; it gets new numbers in some weights only.
        batches: inputs of both models, each called as model(batch), model(*batch) or model(**batch).
        layers: student layers to solve; all by default. The others are passed through as they are.
        layer_map: the teacher layer that each student layer has to come out at, by name or as a mapping, never
            decreasing. Several student layers of one teacher layer, as in a deeper student, take it in equal parts.
        target: "stream" is the above, and where the student's block is a mixer alone and the teacher's has an MLP, the
            stream after the whole block; "block" aims there in any case; "own" at the output of the teacher's own
            mixer, whatever went wrong below.
        mlp: also solve the MLPs' second matrices, against the stream after the teacher's block; by default where the
            student's stream or MLP is narrower than the teacher's.
        projection: from the teacher's stream to the student's, where that is narrower: `principal_axes`, or the rows of
            the identity for a set of neurons.
        tokens: from the teacher's tokens (batch, token, dim) to the student's. By default they meet by the models'
            `extra_tokens`, positions of the tokens other than patches: patch meets patch in natural order; a single
            class token, wherever it stands, meets the teacher's; tokens that the student lacks are left out, and named
            in the report.
        ridge: see `LeastSquares.solve`.
        min_tokens: see `LeastSquares.solve`.
        weighting: all tokens alike; or "relative", in inverse proportion to the mean square of the teacher's stream,
            without which a token of huge norm (an attention sink) outweighs all others.
        products: see `LeastSquares`.
        keep_streams: keep both streams of all batches in memory, so that every block runs only a few times. Otherwise
            every layer begins at the inputs again: memory of one batch, time quadratic in depth; `batches` must then
            give the same batches every time it is iterated over.
        checkpoint: folder in which each solved layer is written down; a second call with the same arguments goes on
            after the last one.
        process_group: solve from the batches of all its processes.
        progress: show a progress bar, if tqdm is installed.

    Raises:
        ValueError: a model has no blocks, widths, tokens, grids or layers do not fit, there are too few tokens, a
            system is singular, or the checkpoint is of another fit.

    Example:
        >>> from transmamba.models import MambaLM, from_transformer, replace_mixers
        >>> from transmamba.nn import Attention, MambaMixer
        >>> from functools import partial
        >>> teacher = MambaLM(11, 8, depth=2, mixer=partial(Attention, heads=2, causal=True))
        >>> student = replace_mixers(teacher, {1: MambaMixer})
        >>> report = fit_layers(teacher, student, [torch.arange(88).view(8, 11) % 11], layers=[1], progress=False)
        >>> [row.layer for row in report.rows], report.rows[0].r2 > 0
        ([1], True)
    """
    fit = LayerFit(
        teacher,
        student,
        batches,
        layer_map=layer_map,
        target=target,
        projection=projection,
        tokens=tokens,
        weighting=weighting,
        keep_streams=keep_streams,
        process_group=process_group,
    )
    wanted = fit.check_layers(layers)
    facts = {"ridge": ridge, "target": target, "weighting": weighting, "layers": wanted, "mlp": mlp}
    saved = None if checkpoint is None else Saved(Path(checkpoint), facts)
    rows = []
    for layer in counted(range(max(wanted) + 1), progress):
        if layer in wanted:
            readouts = fit.readouts(mlp)
            done = None if saved is None else saved.read(layer, student)
            solved = fit.solve(mlp=mlp, ridge=ridge, min_tokens=min_tokens, products=products) if done is None else done
            errors = fit.advance(measure=done is None)
            row = solved if errors is None else solved._replace(stream_error=errors[0], token_error=errors[1])
            rows.append(row)
            if saved is not None and done is None:
                saved.write(row, readouts, student)
        else:
            fit.advance(measure=False)
    return FitReport(tuple(rows), fit.left_out)
