"""The divergence of logits from hidden states, for vocabularies whose logits do not fit."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from transmamba._typing import typed
from transmamba.distill.baselines import Divergence, LogitsDistill
from transmamba.distill.checks import real_tokens, widen
from transmamba.distill.slopes import divergence_slope


class HiddenLogitsDistill(nn.Module):
    """`LogitsDistill` of the logits `hidden @ weight.T`, computed from the hidden states a few tokens at a time.

    The same loss and gradients, but no tensor has both all tokens and all classes. The gradients are computed in the
    forward, in closed form while the logits of a chunk are there, so these are never computed twice, and there are no
    second derivatives. Heads have no bias, as those of language models.

    Args:
        temperature: as in `LogitsDistill`.
        divergence: as in `LogitsDistill`.
        beta: as in `LogitsDistill`.
        chunk: number of tokens whose logits exist at a time.

    Raises:
        ValueError: as `LogitsDistill`.

    Example:
        >>> hidden, head = torch.zeros(3, 4), torch.ones(50, 4)
        >>> HiddenLogitsDistill()(hidden, head, hidden, head)
        tensor(0.)
    """

    def __init__(
        self, temperature: float = 1.0, divergence: Divergence = "forward", *, beta: float = 0.5, chunk: int = 512
    ) -> None:
        super().__init__()
        self.distill = LogitsDistill(temperature, divergence, beta=beta, chunk=chunk)
        self.chunk = chunk

    @typed
    def forward(
        self,
        student: Shaped[Tensor, "*token dim"],
        student_head: Shaped[Tensor, "classes dim"],
        teacher: Shaped[Tensor, "*token2 dim2"],
        teacher_head: Shaped[Tensor, "classes2 dim2"],
        mask: Bool[Tensor, "*token"] | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the divergence; the teacher and its head are detached.

        Args:
            student: hidden states before the head.
            student_head: weight of the head.
            teacher: the teacher's hidden states, of the same tokens.
            teacher_head: weight of its head.
            mask: True marks a real token.

        Raises:
            ValueError: the numbers of tokens or classes differ.
            TypeError: a tensor is not floating.
        """
        _check(student, student_head, teacher, teacher_head)
        count = student.shape[:-1].numel()
        if not count:
            return (student.sum() + student_head.sum()) * torch.nan  # as any mean of nothing
        dtype = torch.promote_types(student.dtype, torch.float32)
        weights = torch.full((count,), 1 / count, dtype=dtype, device=student.device)
        if mask is not None:
            # padding may hold anything, and nothing times NaN is NaN
            student, teacher = real_tokens(student, mask), real_tokens(teacher, mask)
            real = mask.flatten().to(weights.dtype)
            weights = real / real.sum().clamp_min(1)
        pairs = (student.flatten(0, -2), student_head, teacher.detach().flatten(0, -2), teacher_head.detach())
        return _Divergence.apply(self.distill, self.chunk, weights, *pairs)


def _check(student: Tensor, student_head: Tensor, teacher: Tensor, teacher_head: Tensor) -> None:
    tensors = {"student": student, "student_head": student_head, "teacher": teacher, "teacher_head": teacher_head}
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}: expected a floating dtype")
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(f"student has tokens {tuple(student.shape[:-1])}, teacher {tuple(teacher.shape[:-1])}")
    if len(student_head) != len(teacher_head):
        raise ValueError(
            f"student_head has {len(student_head)} classes, teacher_head {len(teacher_head)}: distil between equal "
            "vocabularies, or cut both to the classes they share"
        )


class _Divergence(torch.autograd.Function):
    """Sum over tokens of their weight times their divergence, with the gradients of both student tensors."""

    @staticmethod
    def forward(ctx: Any, distill: LogitsDistill, chunk: int, weights: Tensor, *pairs: Tensor) -> Tensor:
        student, head, teacher, teacher_head = pairs
        wanted = ctx.needs_input_grad[3:5]  # a frozen head costs no gradient of its size
        total = weights.new_zeros(())
        by_student, by_head = (
            torch.zeros_like(x) if need else None for x, need in zip((student, head), wanted, strict=True)
        )
        scale = distill.temperature**2
        for at in range(0, len(student), chunk):
            piece = slice(at, at + chunk)
            hidden, weight = student[piece], weights[piece]
            log_p = _log_softmax(teacher[piece], teacher_head, distill.temperature)[0]
            log_q, dtype = _log_softmax(hidden, head, distill.temperature)
            values, slope = divergence_slope(distill.divergence, distill.beta, log_p, log_q)
            total += (values * weight).sum() * scale
            # the logits were divided by the temperature; few numbers are multiplied here, and none of them is tiny
            slope, weight = slope.to(dtype), (weight * distill.temperature).unsqueeze(-1)
            if by_student is not None:
                by_student[piece] = (slope @ head) * weight
            if by_head is not None:
                _add_product(by_head, slope.T, (hidden * weight).to(hidden.dtype))
        ctx.save_for_backward(by_student, by_head)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # autograd records a backward only where its graph is asked for
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "HiddenLogitsDistill has no second derivative, because its gradients are computed in the forward: "
                "use LogitsDistill on the logits where create_graph=True is needed"
            )
        by_student, by_head = ctx.saved_tensors
        scaled = (None if x is None else x * grad for x in (by_student, by_head))
        return None, None, None, *scaled, None, None


def _log_softmax(hidden: Tensor, head: Tensor, temperature: float) -> tuple[Tensor, torch.dtype]:
    """Return the log-probabilities in single precision or wider, and the dtype of the logits."""
    if hidden.dtype == widen(hidden[:0]).dtype and not torch.is_autocast_enabled(hidden.device.type):
        return F.log_softmax((hidden / temperature) @ head.T, -1), hidden.dtype
    logits = hidden @ head.T
    wide = widen(logits)
    return F.log_softmax(wide if temperature == 1 else wide / temperature, -1), logits.dtype


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    if one.dtype == other.dtype == total.dtype:
        total.addmm_(one, other)
    else:  # autocast
        total += one @ other
