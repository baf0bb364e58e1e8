"""Derivatives of derivatives: compiled backends have none, so they are those of the definition in plain torch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Parts = list[Tensor | None]


def differentiate_again(
    run: Callable[[Parts], Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> tuple[Parts, Parts]:
    """Compute the backward of a backward: gradients of `inputs` and `grad_outputs` from `cotangents` of the first ones.

    `run` is plain torch, so that the result can be differentiated in its turn, where autograd asks for that.

    Args:
        run: outputs from `inputs`.
        inputs: the tensors whose gradients were taken; only floating ones have one.
        grad_outputs: the gradients of the outputs; None is zero.
        cotangents: one per floating tensor of `inputs`, in their order; None is zero.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        sources, given = ([_source(x, again) for x in side] for side in (inputs, grad_outputs))
        floating = [x for x in sources if x is not None and x.requires_grad]
        pairs = [(y, g) for y, g in zip(run(sources), given, strict=True) if g is not None and y.requires_grad]
        ends, weights = [y for y, _ in pairs], [g for _, g in pairs]
        grads = torch.autograd.grad(ends, floating, weights, create_graph=True, allow_unused=True)
        pairs = [
            (x, c)
            for x, c in zip(grads, cotangents, strict=True)
            if x is not None and c is not None and x.requires_grad
        ]
        wanted = [*floating, *(g for g in given if g is not None)]
        ends, weights = [x for x, _ in pairs], [c.to(x.dtype) for x, c in pairs]
        found = iter(torch.autograd.grad(ends, wanted, weights, create_graph=again, allow_unused=True))
    first = [next(found) if x is not None and x.requires_grad else None for x in sources]
    return first, [None if g is None else next(found) for g in given]


def _source(x: Tensor | None, again: bool) -> Tensor | None:
    """Prepare `x` to be differentiated for: by itself, even where one tensor is given twice."""
    if x is None or not x.is_floating_point():
        return x
    return x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_()
