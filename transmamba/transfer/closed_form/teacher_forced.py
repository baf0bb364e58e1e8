"""A teacher's mixers as examples: input and output of each, for gradient steps on any of a student's at once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import typed
from transmamba.transfer.closed_form.least_squares import LeastSquares, write_readout
from transmamba.transfer.closed_form.streams import (
    Batch,
    Place,
    Reached,
    blocks_of,
    call,
    evaluating,
    hooked,
    mask_of,
    mixer_of,
    readout_of,
    run_until,
)


@dataclass(frozen=True)
class MixerPair:
    """Input and output of a teacher's mixer for one batch, both without gradient.

    Attributes:
        inputs: tokens after the norm.
        outputs: the mixer's addition to the stream.
        arguments: its other positional arguments, such as orders.
        options: its keyword arguments.
        mask: True marks a real token; None if all are.
    """

    inputs: Tensor
    outputs: Tensor
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    mask: Tensor | None

    @typed
    def loss(self, mixer: nn.Module) -> Float[Tensor, ""]:
        """Return the squared error of another mixer on the same input, relative to the teacher's variance.

        The mean of the teacher's outputs, given for every token, would have a loss of 1.

        Raises:
            ValueError: the mixer's output has another shape.
        """
        ours = mixer(self.inputs, *self.arguments, **self.options)
        if ours.shape != self.outputs.shape:
            raise ValueError(f"the mixer gave {tuple(ours.shape)}, the teacher's {tuple(self.outputs.shape)}")
        ours, theirs = (x if self.mask is None else x[self.mask] for x in (ours, self.outputs))
        ours, theirs = (x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, -2) for x in (ours, theirs))
        spread = (theirs - theirs.mean(0)).square().sum()
        return (ours - theirs).square().sum() / spread.clamp_min(torch.finfo(spread.dtype).tiny)


@typed
def mixer_pairs(
    teacher: nn.Module, batches: Iterable[Batch], layers: Sequence[int] | None = None
) -> Iterator[dict[int, MixerPair]]:
    """Yield, batch by batch, the input and output of the teacher's mixers by layer.

    The teacher runs without gradient and no further than the last layer needs. Since its own input is given to the
    student's mixer (teacher forcing), the layers do not depend on each other: train any subset of them at once, and
    solve their readouts with `fit_layers` afterwards, which corrects the errors of the layers below.

    Mixers are called with the teacher's own arguments. An image teacher of attention alone has no scan orders: unless
    the student's are the order of the tokens and its reverse, give the teacher the student's beforehand, with
    replace_mixers(teacher, {}, orders=..., prefix_scan=...), which changes none of its outputs.

    Args:
        teacher: a backbone with `blocks`, as `fit_layers` takes it.
        batches: its inputs, each called as model(batch), model(*batch) or model(**batch).
        layers: layers of the teacher; all by default.

    Raises:
        ValueError: a layer does not exist, or the teacher ran without it.

    Example:
        >>> from transmamba.models import MambaLM
        >>> from transmamba.nn import Attention, MambaMixer
        >>> from functools import partial
        >>> teacher = MambaLM(11, 8, depth=2, mixer=partial(Attention, heads=2, causal=True))
        >>> student = {0: MambaMixer(8), 1: MambaMixer(8)}
        >>> for pairs in mixer_pairs(teacher, [torch.arange(22).view(2, 11) % 11], [0, 1]):
        ...     sum(pair.loss(student[layer]) for layer, pair in pairs.items()).backward()
    """
    blocks = blocks_of(teacher, "teacher")
    wanted = sorted(set(range(len(blocks)) if layers is None else layers))
    if wrong := [layer for layer in wanted if not 0 <= layer < len(blocks)]:
        raise ValueError(f"layer {wrong[0]} does not exist: expected 0 to {len(blocks) - 1}")
    return _pairs(teacher, batches, {layer: mixer_of(blocks[layer]) for layer in wanted})


def _pairs(
    teacher: nn.Module, batches: Iterable[Batch], mixers: dict[int, nn.Module]
) -> Iterator[dict[int, MixerPair]]:
    for batch in batches:
        found: dict[int, MixerPair] = {}
        handles = [
            mixer.register_forward_hook(partial(_keep, found, layer, len(mixers)), with_kwargs=True)
            for layer, mixer in mixers.items()
        ]
        with evaluating(teacher), hooked(*handles), suppress(Reached):
            call(teacher, batch)
        if silent := sorted(mixers.keys() - found.keys()):
            raise ValueError(f"{type(teacher).__name__} ran without the mixer of layer {silent[0]}")
        yield found


def _keep(
    found: dict[int, MixerPair],
    layer: int,
    count: int,
    mixer: nn.Module,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    output: Any,
) -> None:
    """Record one call of a mixer; the teacher stops once all have been called."""
    given = output if isinstance(output, Tensor) else output[0]
    mask = mask_of(mixer, arguments, options)
    found[layer] = MixerPair(arguments[0], given, arguments[1:], options, mask)
    if len(found) == count:
        raise Reached


@typed
def fit_mixers(
    teacher: nn.Module,
    mixers: Mapping[int, nn.Module],
    batches: Iterable[Batch],
    *,
    ridge: float = 1e-3,
    min_tokens: int | None = None,
    products: torch.dtype = torch.float32,
) -> dict[int, float]:
    """Solve the readouts of mixers against those of a teacher, each on the teacher's own input; return each one's R2.

    One pass of the teacher is enough for all layers, because none depends on another. One mixer alone comes out as
    `fit_layers` would solve it; several at once do not, because nothing corrects the errors of the layers below. The
    result serves as candidates: `sensitivity(teacher, evaluate, replace=mixers)` measures the cost of each layer with
    its solved mixer.

    Args:
        teacher: a backbone with `blocks`, as `fit_layers` takes it.
        mixers: layer of the teacher -> mixer, whose readout gets new numbers.
        batches: the teacher's inputs, each called as model(batch), model(*batch) or model(**batch).
        ridge: see `LeastSquares.solve`.
        min_tokens: see `LeastSquares.solve`.
        products: see `LeastSquares`.

    Raises:
        ValueError: a layer does not exist, a mixer has no readout or another width, there is no batch, or the tokens
            are too few.

    Example:
        >>> from transmamba.models import MambaLM
        >>> from transmamba.nn import MambaMixer
        >>> teacher, mixers = MambaLM(11, 8, depth=2), {0: MambaMixer(8), 1: MambaMixer(8)}
        >>> r2 = fit_mixers(teacher, mixers, [torch.arange(88).view(8, 11) % 11])
        >>> sorted(r2), min(r2.values()) > 0
        ([0, 1], True)
    """
    sums: dict[int, LeastSquares] = {}
    with evaluating(*mixers.values()):
        for pairs in mixer_pairs(teacher, batches, list(mixers)):
            for layer, pair in pairs.items():
                readout = readout_of(mixers[layer])
                if layer not in sums:
                    sizes = (readout.in_features, pair.outputs.shape[-1])
                    device = readout.weight.device
                    bias = readout.bias is not None
                    sums[layer] = LeastSquares(*sizes, bias=bias, products=products, device=device)
                place = Place(pair.inputs, pair.arguments, pair.options)
                sums[layer].update(run_until(place, mixers[layer], readout), pair.outputs, mask=pair.mask)
        if mixers and not sums:
            raise ValueError("no batch to run the teacher on: give at least one")
        return {layer: _write(mixers[layer], found, ridge, min_tokens) for layer, found in sums.items()}


def _write(mixer: nn.Module, sums: LeastSquares, ridge: float, min_tokens: int | None) -> float:
    """Solve one readout, and return its R2."""
    solved = sums.solve(ridge, min_tokens=min_tokens)
    write_readout(readout_of(mixer), solved)
    return sums.r2(solved.weight, solved.bias)
