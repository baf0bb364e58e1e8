"""The losses to compare with: logits, last feature, layer to layer. One convention: mean over tokens, times T^2."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from transmamba._typing import check_choice, typed
from transmamba.distill.bridge import Layout, check_layouts
from transmamba.distill.checks import Layers, check_layers, check_mask, real_tokens, widen
from transmamba.distill.layer_map import TeacherLayers, check_teacher_layers, match_layers
from transmamba.distill.similarity import batch_mean, cosine, unit_target
from transmamba.distill.slopes import chunked_divergence

Divergence = Literal["forward", "reverse", "js"]
Criterion = Literal["cosine", "mse"]


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive and finite.

    Raises:
        ValueError: it is zero, negative, infinite or not a number.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits over different classes or tokens.

    Raises:
        ValueError: shapes differ.
        TypeError: they are not floating tensors.
    """
    for name, logits in (("student", student), ("teacher", teacher)):
        if not logits.is_floating_point():
            raise TypeError(f"{name} logits have dtype {logits.dtype}: expected a floating dtype")
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student has {student.shape[-1]} classes, teacher {teacher.shape[-1]}: distil between equal vocabularies, "
            "or cut both to the classes they share"
        )
    if student.shape != teacher.shape:
        raise ValueError(f"student logits have shape {tuple(student.shape)}, teacher logits {tuple(teacher.shape)}")


def token_mean(values: Float[Tensor, "*token"], mask: Bool[Tensor, "*token"] | None) -> Float[Tensor, ""]:
    """Average over the real tokens."""
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute KL(p || q) over the last axis, from log-probabilities."""
    # a class of probability zero adds nothing; 0 * (-inf - log q) would be NaN
    return (log_p.exp() * (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)).sum(-1)


class LogitsDistill(nn.Module):
    """Match the teacher's class distribution at temperature T, per token.

    With p the teacher and q the student, both softmax(logits / T):

        forward  T^2 KL(p || q)        reverse  T^2 KL(q || p)
        js       T^2 (beta KL(p || m) + (1 - beta) KL(q || m)),    m = beta p + (1 - beta) q

    and the mean over all tokens. T^2 keeps the gradient's size as T changes.

    Args:
        temperature: T; 1 is the plain divergence. On 62 classes 8 did better than 1 and 2 (docs/results.md).
        divergence: "forward" (the usual one), "reverse" (mode seeking) or "js" (bounded).
        beta: the teacher's share of the mixture in "js".
        chunk: compute this many tokens at a time, and again in the backward: for large vocabularies, where each
            intermediate is as large as the logits.

    Raises:
        ValueError: the temperature is not positive and finite, beta is not between 0 and 1, the divergence is unknown,
            or chunk is below 1.

    Reference:
        Hinton et al., arXiv 1503.02531. Conversions from other conventions: docs/kd_conventions.md.

    Example:
        >>> LogitsDistill(temperature=2.0)(torch.zeros(3, 5), torch.zeros(3, 5))
        tensor(0.)
    """

    def __init__(
        self,
        temperature: float = 1.0,
        divergence: Divergence = "forward",
        *,
        beta: float = 0.5,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        check_choice("divergence", divergence, get_args(Divergence))
        if not 0 < beta < 1:
            raise ValueError(f"beta must lie between 0 and 1, got {beta}")
        self.temperature, self.divergence, self.beta, self.chunk = float(temperature), divergence, beta, chunk

    @typed
    def forward(
        self,
        student: Shaped[Tensor, "*token classes"],
        teacher: Shaped[Tensor, "*token2 classes2"],
        mask: Bool[Tensor, "*token"] | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the divergence; the teacher is detached, half precision is computed in single.

        Raises:
            ValueError: the numbers of classes or tokens differ.
            TypeError: logits are not floating.
        """
        check_logits(student, teacher)
        if self.chunk is None:
            return token_mean(self.per_token(student, teacher.detach(), mask), mask) * self.temperature**2
        mask = None if mask is None else mask.flatten()
        values = chunked_divergence(self, student.flatten(0, -2), teacher.detach().flatten(0, -2), mask)
        return token_mean(values, mask) * self.temperature**2

    def per_token(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the divergence of each token, without the factor T^2; that of padding is zero."""
        student, teacher = (widen(real_tokens(x, mask)) / self.temperature for x in (student, teacher))
        log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
        return self._divergence(log_p, log_q)

    def _divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.divergence == "forward":
            return _kl(log_p, log_q)
        if self.divergence == "reverse":
            return _kl(log_q, log_p)
        log_m = torch.logaddexp(log_p + math.log(self.beta), log_q + math.log1p(-self.beta))
        return self.beta * _kl(log_p, log_m) + (1 - self.beta) * _kl(log_q, log_m)


def _distance(student: Tensor, teacher: Tensor, mask: Tensor | None, criterion: Criterion) -> Tensor:
    if criterion == "cosine":
        return 1 - batch_mean(cosine(student, unit_target(teacher, "token", mask), "token", mask), mask, None)
    student, teacher = (widen(real_tokens(x, mask)) for x in (student, teacher.detach()))
    return token_mean((student - teacher).square().mean(-1), mask)


class LastFeatureDistill(nn.Module):
    """Match the student's last feature with the teacher's: the feature baseline of Table 5.

    Args:
        criterion: "cosine" (1 - cosine per token) or "mse" (mean over tokens and channels).

    Raises:
        ValueError: the criterion is unknown.

    Example:
        >>> LastFeatureDistill("mse")(torch.ones(2, 5, 3), torch.zeros(2, 5, 3))
        tensor(1.)
    """

    def __init__(self, criterion: Criterion = "cosine") -> None:
        super().__init__()
        check_choice("criterion", criterion, get_args(Criterion))
        self.criterion: Criterion = criterion

    @typed
    def forward(
        self,
        student: Shaped[Tensor, "batch token dim"],
        teacher: Shaped[Tensor, "batch2 token2 dim2"],
        mask: Bool[Tensor, "batch token"] | None = None,
        *,
        layouts: tuple[Layout, Layout] | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the distance; the teacher is detached.

        Args:
            student: the feature, calibrated to the teacher's width.
            teacher: the teacher's.
            mask: True marks a real token.
            layouts: `models.Features` of student and teacher, to check that their tokens stand in the same places.

        Raises:
            ValueError: the shapes or the layouts differ.
            TypeError: a feature is not floating.
        """
        if layouts is not None:
            check_layouts(*layouts)
        check_layers([student], [teacher])
        return _distance(student, teacher, mask, self.criterion)


class LayerwiseDistill(nn.Module):
    """Match each student layer with its own teacher layer, all weighing the same.

    Args:
        criterion: "cosine" or "mse"; with "mse" on hidden states this is stage two of MOHAWK, up to its norm.
        teacher_layers: which teacher layer each student layer imitates, see `match_layers`. "uniform" is also a map of
            inheritance; after another one give `report.layers`.

    Raises:
        ValueError: the criterion or the name in `teacher_layers` is unknown.

    Example:
        >>> layers = [torch.ones(2, 5, 3)] * 4
        >>> LayerwiseDistill("mse")(layers[:2], layers)
        tensor(0.)
    """

    def __init__(self, criterion: Criterion = "cosine", teacher_layers: TeacherLayers = "uniform") -> None:
        super().__init__()
        check_choice("criterion", criterion, get_args(Criterion))
        check_teacher_layers(teacher_layers)
        self.criterion: Criterion = criterion
        self.teacher_layers = teacher_layers

    @typed
    def forward(
        self,
        student: Layers,
        teacher: Layers,
        mask: Bool[Tensor, "batch token"] | None = None,
        *,
        layouts: tuple[Layout, Layout] | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the mean distance over the layers.

        Args:
            student: one feature per layer, calibrated to the teacher's width.
            teacher: one per teacher layer.
            mask: True marks a real token.
            layouts: `models.Features` of student and teacher, to check that their tokens stand in the same places.

        Raises:
            ValueError: a sequence is empty, or shapes or layouts differ.
            TypeError: a layer is not a floating tensor.
        """
        if layouts is not None:
            check_layouts(*layouts)
        matched = len(student) > 0 and len(teacher) > 0
        chosen = match_layers(len(student), len(teacher), self.teacher_layers) if matched else ()
        pairs = [teacher[index] for index in chosen]
        check_layers(student, pairs)
        check_mask(mask, student[0])
        distances = [_distance(*pair, mask, self.criterion) for pair in zip(student, pairs, strict=True)]
        return torch.stack(distances).mean()
