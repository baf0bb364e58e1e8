"""One layer of a student against a teacher at a time: the loop of `fit_layers`, opened."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce

from transmamba._layer_maps import LayerMap
from transmamba._typing import typed
from transmamba.transfer.closed_form.fit_report import FitRow
from transmamba.transfer.closed_form.layouts import TokenMatch
from transmamba.transfer.closed_form.least_squares import LeastSquares, write_readout
from transmamba.transfer.closed_form.lockstep import Lockstep, Step
from transmamba.transfer.closed_form.streams import (
    Batch,
    Place,
    ends_with_mixer,
    evaluating,
    hooked,
    mixer_of,
    readout_of,
    run_until,
    watch,
)

Target = Literal["stream", "block", "own"]
Weighting = Literal["equal", "relative"]
View = Callable[[Tensor], Tensor]


class LayerFit:
    """Follow a teacher and a student block by block: `solve` the next student layer, then `advance` beyond it.

    `fit_layers` does just that, and explains the arguments. A loop of your own can do more in between: take gradient
    steps on `pairs()`, solve once more.

    Raises:
        ValueError: a model has no blocks, the layer map decreases, or there is no batch.

    Example:
        >>> from transmamba.models import MambaLM
        >>> teacher, student = MambaLM(11, 8, depth=2), MambaLM(11, 8, depth=2)
        >>> fit = LayerFit(teacher, student, [torch.arange(88).view(8, 11) % 11])
        >>> for place, target in fit.pairs():
        ...     target.shape
        torch.Size([8, 11, 8])
        >>> fit.solve().layer, fit.advance() is None, fit.layer
        (0, False, 1)
    """

    @typed
    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        batches: Iterable[Batch],
        *,
        layer_map: LayerMap = "uniform",
        target: Target = "stream",
        projection: Tensor | None = None,
        tokens: View | None = None,
        weighting: Weighting = "equal",
        keep_streams: bool = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        self.target, self.projection, self.weighting = target, projection, weighting
        self.tokens: View = TokenMatch(teacher, student) if tokens is None else tokens
        self.group = process_group
        self._models = (teacher, student)
        self._both: bool | None = None  # of the next layer, once it is known
        self._streams = Lockstep(teacher, student, batches, layer_map, keep_streams)

    @property
    def layer(self) -> int:
        """Return the next student layer."""
        return self._streams.layer

    @property
    def left_out(self) -> tuple[int, ...]:
        """Return the positions of the teacher's tokens that the student lacks, unless `tokens` was given."""
        return self.tokens.left_out if isinstance(self.tokens, TokenMatch) else ()

    def check_layers(self, layers: Sequence[int] | None) -> list[int]:
        """Return the layers to solve, sorted.

        Raises:
            ValueError: one does not exist, or there is none.
        """
        depth = len(self._streams.ours)
        wanted = sorted(set(range(depth) if layers is None else layers))
        if not wanted or not 0 <= wanted[0] <= wanted[-1] < depth:
            raise ValueError(f"layers must be some of 0 to {depth - 1}, got {layers}")
        return wanted

    @typed
    def solve(
        self,
        *,
        mlp: bool | None = None,
        ridge: float = 1e-3,
        min_tokens: int | None = None,
        products: torch.dtype = torch.float32,
    ) -> FitRow:
        """Solve the next layer's readout, and that of its MLP if asked for or if something was cut there.

        The arguments are those of `fit_layers`.

        Raises:
            ValueError: widths or tokens do not fit, there are too few tokens, or the system is singular.
        """
        block = self._block
        with evaluating(*self._models):
            readout = readout_of(mixer_of(block))
            tokens, r2 = self._solve(readout, self._mixer_rows, ridge, min_tokens, products)
            mlp_r2 = None
            if self._solves_mlp(mlp):
                mlp_r2 = self._solve(readout_of(block.mlp), self._mlp_rows, ridge, min_tokens, products)[1]
        return FitRow(self.layer, self._streams.map[self.layer], tokens, r2, mlp_r2)

    def readouts(self, mlp: bool | None = None) -> list[nn.Linear]:
        """Return the linear layers that `solve` writes to."""
        found = [readout_of(mixer_of(self._block))]
        return [*found, readout_of(self._block.mlp)] if self._solves_mlp(mlp) else found

    def pairs(self) -> Iterator[tuple[Place, Tensor]]:
        """Yield, batch by batch, the input of the next student block and the target of its mixer's output.

        The stream is `place.tokens`; `place.mask(block)` has the padding.
        """
        with evaluating(*self._models):
            yield from [(step.place, self._mixer_target(step)) for step in self._streams.steps()]

    def advance(self, *, measure: bool = True) -> tuple[float, float] | None:
        """Move on to the next layer; with `measure`, return the errors of the student's stream there (see `FitRow`)."""
        sums, mean = torch.zeros(4, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        block = self._block

        def observe(step: Step, tokens: Tensor) -> None:
            nonlocal sums, mean
            mask, pair = step.place.mask(block), (self._view(step.taught.after, step), tokens)
            theirs, ours = ((x.flatten(0, -2) if mask is None else x[mask]).double().cpu() for x in pair)
            error, size = (ours - theirs).square().sum(-1), theirs.square().sum(-1)
            sums = sums + torch.stack([error.sum(), size.sum(), (error / size).sum(), size.new_tensor(len(size))])
            mean = mean + theirs.sum(0)

        self._streams.advance(observe if measure else None)
        self._both = None
        if not measure:
            return None
        if self.group is not None:
            for part in (sums, mean):
                all_reduce(part, group=self.group)
        spread = float(sums[1] - mean.square().sum() / sums[3])
        return float(sums[0]) / spread, float(sums[2] / sums[3])

    @property
    def _block(self) -> Any:
        return self._streams.ours[self.layer]

    def _solves_mlp(self, wanted: bool | None) -> bool:
        ours, theirs = (getattr(block, "mlp", None) for block in (self._block, self._teacher_block))
        if wanted is not None or ours is None or theirs is None:
            if wanted and ours is None:
                raise ValueError(f"block {self.layer} of the student has no MLP to solve")
            return bool(wanted)
        narrow, wide = readout_of(ours), readout_of(theirs)
        return narrow.in_features < wide.in_features or narrow.out_features < wide.out_features

    @property
    def _teacher_block(self) -> Any:
        return self._streams.theirs[self._streams.map[self.layer]]

    def _solve(
        self,
        readout: nn.Linear,
        rows: Callable[[Step, nn.Linear], tuple[Tensor, Tensor]],
        ridge: float,
        min_tokens: int | None,
        products: torch.dtype,
    ) -> tuple[int, float]:
        """Solve one linear layer from all batches; return the number of tokens and the R2."""
        if getattr(self._block, "placement", "pre") != "pre" and self.target != "own":
            raise ValueError(
                f"block {self.layer} of the student normalises after its mixer, so that its stream is not linear in"
                " the readout: use target='own', or a student with placement='pre'"
            )
        sizes, bias = (readout.in_features, readout.out_features), readout.bias is not None
        sums = LeastSquares(*sizes, bias=bias, products=products, device=readout.weight.device)
        for step in self._streams.steps():
            features, targets = rows(step, readout)
            mask = step.place.mask(self._block)
            sums.update(features, targets, mask=mask, weights=self._weights(step))
        if self.group is not None:
            sums.all_reduce(self.group)
        solved = sums.solve(ridge, min_tokens=min_tokens)
        write_readout(readout, solved)
        return sums.tokens, sums.r2(solved.weight, solved.bias)

    def _mixer_rows(self, step: Step, readout: nn.Linear) -> tuple[Tensor, Tensor]:
        return run_until(step.place, self._block, readout), self._mixer_target(step)

    def _mixer_target(self, step: Step) -> Tensor:
        if self.target == "own":
            return self._view(step.taught.mixed, step)
        whole = self.target == "block" or self._does_both(step)
        return self._view(step.taught.after if whole else step.taught.middle, step) - step.place.tokens

    def _does_both(self, step: Step) -> bool:
        """Return whether the student's block is its mixer alone, and the teacher's has an MLP behind it."""
        if self._both is None:
            alone = getattr(self._block, "mlp", None) is None and step.taught.fed is not None
            self._both = alone and ends_with_mixer(step.place, self._block)
        return self._both

    def _mlp_rows(self, step: Step, readout: nn.Linear) -> tuple[Tensor, Tensor]:
        found: dict[str, Tensor] = {}
        with hooked(watch(mixer_of(self._block), found, "mixed")):
            features = run_until(step.place, self._block, readout)
        if self.target == "own":
            if step.taught.fed is None:
                raise ValueError(f"the teacher of block {self.layer} has no MLP: target='own' needs its output")
            return features, self._view(step.taught.fed, step)
        return features, self._view(step.taught.after, step) - (step.place.tokens + found["mixed"])

    def _view(self, theirs: Tensor, step: Step) -> Tensor:
        """Bring the teacher's tokens and width to those of the student."""
        theirs = self.tokens(theirs)
        theirs = theirs if self.projection is None else theirs @ self.projection.to(theirs).T
        ours = step.place.tokens
        if theirs.shape != ours.shape:
            hint = "tokens=lambda x: x[:, 1:]" if theirs.shape[1] != ours.shape[1] else "projection=principal_axes(...)"
            raise ValueError(
                f"the teacher's stream is {tuple(theirs.shape)}, the student's {tuple(ours.shape)} (batch, token,"
                f" dim): say how the one becomes the other, such as {hint}"
            )
        return theirs

    def _weights(self, step: Step) -> Tensor | None:
        if self.weighting == "equal":
            return None
        return 1 / self._view(step.taught.middle, step).double().square().mean(-1).clamp_min(1e-12)
