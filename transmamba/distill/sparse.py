"""Distillation from the few most probable classes of each token, stored once instead of a teacher that runs along."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transmamba._typing import check_sizes, typed
from transmamba.distill.baselines import check_temperature, token_mean
from transmamba.distill.checks import widen

Tail = Literal["bucket", "renormalise"]


class SparseLogits(NamedTuple):
    """The most probable classes of each token, the most probable one first.

    Attributes:
        classes: their numbers, (..., k).
        log_probs: logarithms of their probabilities among all classes, (..., k).
    """

    classes: Tensor
    log_probs: Tensor


@typed
@torch.no_grad()
def top_logits(
    hidden: Shaped[Tensor, "*token dim"],
    head: Shaped[Tensor, "classes dim"],
    count: int,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
) -> SparseLogits:
    """Return the most probable classes of softmax(hidden head^T / temperature), some tokens at a time.

    Args:
        hidden: a teacher's hidden states before its head.
        head: weight of the head.
        count: classes to keep of each token.
        temperature: the one of the later distillation.
        chunk: number of tokens whose logits exist at a time.

    Raises:
        ValueError: there are not as many classes, or the temperature is not positive and finite.

    Example:
        >>> top_logits(torch.eye(3), torch.eye(3), 1).classes.flatten()
        tensor([0, 1, 2])
    """
    check_temperature(temperature)
    check_sizes(count=count, chunk=chunk)
    if count > len(head):
        raise ValueError(f"cannot keep {count} of {len(head)} classes")
    found = []
    for piece in hidden.flatten(0, -2).split(chunk):
        found.append(torch.log_softmax(widen(piece @ head.T) / temperature, -1).topk(count))
    shape = (*hidden.shape[:-1], count)
    values, classes = (torch.cat(parts).reshape(shape) for parts in zip(*found, strict=True))
    return SparseLogits(classes, values)


class SparseLogitsDistill(nn.Module):
    """KL(teacher || student) times T^2 from stored `top_logits` and the student's hidden states.

    No tensor has both all tokens and all classes: the student's logits exist for a chunk of tokens at a time, and are
    computed again in the backward.

    Args:
        temperature: T, the one of `top_logits`.
        tail: "bucket" compares the probability of all other classes together on both sides, which leaves the student no
            reason to drain them; "renormalise" makes the teacher's stored probabilities add up to one, which does. With
            all classes stored both are the divergence of `LogitsDistill`.
        chunk: number of tokens whose logits exist at a time.

    Raises:
        ValueError: the temperature is not positive and finite, the tail is unknown, or chunk is below 1.

    Reference:
        On the bias of a renormalised top k: arXiv 2503.16870.

    Example:
        >>> hidden, head = torch.zeros(3, 4), torch.ones(50, 4)
        >>> abs(float(SparseLogitsDistill()(hidden, head, top_logits(hidden, head, 5)))) < 1e-6
        True
    """

    @typed
    def __init__(self, temperature: float = 1.0, *, tail: Tail = "bucket", chunk: int = 512) -> None:
        super().__init__()
        check_temperature(temperature)
        check_sizes(chunk=chunk)
        self.temperature, self.tail, self.chunk = temperature, tail, chunk

    @typed
    def forward(
        self,
        student: Shaped[Tensor, "*token dim"],
        head: Shaped[Tensor, "classes dim"],
        teacher: SparseLogits,
        mask: Bool[Tensor, "*token"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the divergence, the mean over the real tokens.

        Args:
            student: hidden states before the head.
            head: weight of the head.
            teacher: classes and log-probabilities of the same tokens.
            mask: True marks a real token.

        Raises:
            ValueError: the numbers of tokens differ, or a stored class does not exist.
        """
        classes, log_probs = self._checked(student, head, teacher)
        if mask is not None:
            student, classes, log_probs = student[mask], classes[mask], log_probs[mask]
        rows = (student.flatten(0, -2), classes.flatten(0, -2), log_probs.flatten(0, -2))
        pieces = zip(*(part.split(self.chunk) for part in rows), strict=True)
        values = [checkpoint(self._per_token, piece[0], head, *piece[1:], use_reentrant=False) for piece in pieces]
        return token_mean(torch.cat(values), None) * self.temperature**2

    def _per_token(self, hidden: Tensor, head: Tensor, classes: Tensor, log_p: Tensor) -> Tensor:
        logits = widen(hidden @ head.T) / self.temperature
        total = logits.logsumexp(-1, keepdim=True)
        log_q = logits.gather(-1, classes) - total
        if self.tail == "renormalise":
            log_p = log_p.log_softmax(-1)
        top = (log_p.exp() * (log_p - log_q)).sum(-1)
        if self.tail == "renormalise" or classes.shape[-1] == len(head):
            return top
        # the difference of one and a sum near one would lose the digits that matter
        others = logits.scatter(-1, classes, -torch.inf).logsumexp(-1) - total[..., 0]
        rest = -torch.expm1(log_p.logsumexp(-1).clamp_max(0))
        return top + torch.xlogy(rest, rest) - rest * others

    def _checked(self, student: Tensor, head: Tensor, teacher: SparseLogits) -> SparseLogits:
        classes, log_probs = (part.detach() for part in teacher)
        if classes.shape != log_probs.shape or classes.shape[:-1] != student.shape[:-1]:
            raise ValueError(
                f"student has tokens {tuple(student.shape[:-1])}, the teacher's classes are {tuple(classes.shape)},"
                f" their log-probabilities {tuple(log_probs.shape)}: expected (tokens, k) of the same tokens"
            )
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < len(head):
            raise ValueError(f"stored classes reach from {int(classes.min())} to {int(classes.max())} of {len(head)}")
        return SparseLogits(classes.long(), widen(log_probs))
