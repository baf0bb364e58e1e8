"""Divergences with their gradients in closed form, for losses that compute both while the logits are there."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transmamba.distill.checks import real_tokens, widen


def divergence_slope(divergence: str, beta: float, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the divergence of each token, and its gradient by the logits of which `log_q` is the log-softmax.

    Nothing is recorded for autograd, and both arguments are used up: each operation on tensors of this size moves
    as many bytes as the logits have.

    Args:
        divergence: "forward", "reverse" or "js", as in `LogitsDistill`.
        beta: the share of p in the mixture of "js".
        log_p: log-probabilities of the teacher, (token, classes).
        log_q: those of the student, of the same shape.

    Returns:
        (token,) and (token, classes).
    """
    if divergence == "forward":
        p = log_p.exp()
        value = log_p.sub_(log_q).masked_fill_(p == 0, 0).mul_(p).sum(-1)
        return value, log_q.exp_().sub_(p)
    if divergence == "reverse":
        return _slope_of_first(log_q, log_p)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    p = log_p.exp()
    value = log_p.sub_(log_m).masked_fill_(p == 0, 0).mul_(p).sum(-1)
    # the derivatives through m cancel between the two terms
    rest, slope = _slope_of_first(log_q, log_m)
    return beta * value + (1 - beta) * rest, slope.mul_(1 - beta)


def _slope_of_first(log_q: Tensor, log_m: Tensor) -> tuple[Tensor, Tensor]:
    """Compute KL(q || m) and its gradient by the logits of q, where m is constant."""
    q = log_q.exp()
    # a class of probability zero adds nothing; 0 * (-inf + inf) would be NaN
    difference = log_q.sub_(log_m).masked_fill_(q == 0, 0)
    value = (q * difference).sum(-1)
    return value, difference.sub_(value.unsqueeze(-1)).mul_(q)


def chunked_divergence(distill: Any, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the divergence of each token, a few tokens at a time, and its gradient in closed form in the backward.

    Args:
        distill: a `LogitsDistill` with a chunk.
        student: logits (token, classes), kept for the backward like the teacher's; nothing else of that size is.
        teacher: of the same shape.
        mask: (token,), or None.
    """
    return _Chunked.apply(distill, student, teacher, mask)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distill: Any, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        ctx.distill = distill
        ctx.save_for_backward(student, teacher, mask)
        return torch.cat([distill.per_token(*part) for _, *part in _pieces(distill.chunk, student, teacher, mask)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, mask = ctx.saved_tensors
        distill = ctx.distill
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # a graph of the gradient is asked for, and autograd has one
            values = distill.per_token(student, teacher, mask)
            return None, *torch.autograd.grad(values, student, grad, create_graph=True), None, None
        found = torch.empty_like(student)
        weights = (grad / distill.temperature).unsqueeze(-1)
        for at, ours, theirs, real in _pieces(distill.chunk, student, teacher, mask):
            log_p, log_q = (
                F.log_softmax(widen(real_tokens(x, real)) / distill.temperature, -1) for x in (theirs, ours)
            )
            if distill.divergence == "forward":
                slope = log_q.exp_().sub_(log_p.exp_())
            else:
                slope = divergence_slope(distill.divergence, distill.beta, log_p, log_q)[1]
            found[at] = slope.mul_(weights[at])
        return None, found, None, None


def _pieces(chunk: int, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Iterator[tuple[Any, ...]]:
    for start in range(0, max(len(student), 1), chunk):  # a piece even of nothing
        at = slice(start, start + chunk)
        yield at, student[at], teacher[at], None if mask is None else mask[at]
