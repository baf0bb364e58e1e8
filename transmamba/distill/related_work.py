"""Losses of the released code and of neighbouring papers, to compare with."""

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from transmamba._typing import typed
from transmamba.distill.baselines import check_logits, check_temperature
from transmamba.distill.checks import Layers, check_layers, widen


class OfficialRepoLoss(nn.Module):
    """The loss with which the released TransMamba code trains, which is not the method of the paper.

    With ce(s, t) = -mean_batch sum_channel softmax(t / T) log_softmax(s / T), no T^2:

        loss = task + final_weight * ce(final, teacher) + sum_{i=1}^{N-1} i * ce(layer_i, teacher)

    over pooled vectors: the softmax runs over feature channels, and the ramp leaves the last layer out.

    Args:
        tau: T.
        final_weight: weight of the final feature.

    Raises:
        ValueError: tau is not positive and finite.

    Reference:
        github.com/chen-xw/TransMamba-main, losses.py, DistillationLoss.

    Example:
        >>> pooled = torch.zeros(2, 3)
        >>> OfficialRepoLoss()(torch.tensor(0.0), pooled, [pooled] * 2, pooled) / math.log(3)
        tensor(121.0000)
    """

    def __init__(self, tau: float = 2.0, final_weight: float = 120.0) -> None:
        super().__init__()
        check_temperature(tau)
        self.tau, self.final_weight = float(tau), float(final_weight)

    @typed
    def forward(
        self,
        task: Float[Tensor, ""],
        final: Shaped[Tensor, "batch dim"],
        layers: Layers,
        teacher: Shaped[Tensor, "batch2 dim2"],
    ) -> Float[Tensor, ""]:
        """Compute the loss.

        Args:
            task: the task loss.
            final: mean over the student's tokens after its last norm.
            layers: mean over the tokens of each layer before that norm, all N of them.
            teacher: the teacher's class token after its last norm; detached.

        Raises:
            ValueError: there is no layer, or widths or batches differ.
            TypeError: a feature is not floating.
        """
        check_layers([final], [teacher], axes=("batch", "channels"), name="final student")
        check_layers(layers, [teacher], axes=("batch", "channels"))
        target = F.softmax(widen(teacher.detach()) / self.tau, -1)
        loss = task + self.final_weight * self._cross_entropy(final, target)
        for number, layer in enumerate(layers[:-1], start=1):
            loss = loss + number * self._cross_entropy(layer, target)
        return loss

    def _cross_entropy(self, student: Tensor, target: Tensor) -> Tensor:
        return -(target * F.log_softmax(widen(student) / self.tau, -1)).sum(-1).mean()


class OFADistill(nn.Module):
    """Logits distillation that leans on the true class where the teacher is sure of it.

    With p the teacher, q the student and c the true class:

        loss = mean( -(1 + p_c)^gamma log q_c - sum_{k != c} p_k log q_k )

    At gamma = 1 this is cross-entropy with the label plus cross-entropy with the teacher. The paper applies it to every
    stage of the student, sent through a projection to the classes.

    Args:
        gamma: how much more the true class weighs.
        temperature: divides both logits; the loss is times its square.

    Raises:
        ValueError: gamma is negative or not finite, or the temperature is not positive and finite.

    Reference:
        Hao et al., One-for-All, arXiv 2310.19444.

    Example:
        >>> OFADistill()(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])) / math.log(2)
        tensor(2.)
    """

    def __init__(self, gamma: float = 1.0, *, temperature: float = 1.0) -> None:
        super().__init__()
        if not (gamma >= 0 and math.isfinite(gamma)):
            raise ValueError(f"gamma must be finite and not negative, got {gamma}")
        check_temperature(temperature)
        self.gamma, self.temperature = float(gamma), float(temperature)

    @typed
    def forward(
        self,
        student: Shaped[Tensor, "*token classes"],
        teacher: Shaped[Tensor, "*token2 classes2"],
        target: Int[Tensor, "*token"],
    ) -> Float[Tensor, ""]:
        """Compute the loss; the teacher is detached.

        Args:
            student: logits of the student, or of one of its stages.
            teacher: logits of the teacher.
            target: true classes.

        Raises:
            ValueError: the numbers of classes or tokens differ.
            TypeError: logits are not floating.
        """
        check_logits(student, teacher)
        log_q = F.log_softmax(widen(student) / self.temperature, -1)
        p = F.softmax(widen(teacher.detach()) / self.temperature, -1)
        true = target[..., None]
        weights = p.scatter(-1, true, (1 + p.gather(-1, true)) ** self.gamma)
        return -(weights * log_q).sum(-1).mean() * self.temperature**2


class MixingMatrixDistill(nn.Module):
    """Match how tokens are mixed: attention matrices of the teacher, materialised scans of the student.

    loss = mean over layers, samples and heads of |M_student - M_teacher|_F

    Args:
        relative: divide each distance by |M_teacher|_F, so that lengths and layers weigh the same.

    Reference:
        Stage one of MOHAWK, Bick et al., arXiv 2408.10189.

    Example:
        >>> matrices = [torch.eye(5).expand(2, 3, 5, 5)]
        >>> MixingMatrixDistill()(matrices, [torch.zeros(2, 3, 5, 5)]) ** 2
        tensor(5.)
    """

    def __init__(self, *, relative: bool = False) -> None:
        super().__init__()
        self.relative = relative

    @typed
    def forward(self, student: Layers, teacher: Layers) -> Float[Tensor, ""]:
        """Compute the mean distance; the teacher is detached.

        Args:
            student: one [batch head query key] per layer.
            teacher: likewise, as many and of the same shapes.

        Raises:
            ValueError: a sequence is empty, numbers of layers differ, or shapes differ.
            TypeError: a matrix is not a floating tensor.
        """
        if len(student) != len(teacher):
            raise ValueError(
                f"{len(student)} student mixing matrices, {len(teacher)} teacher ones: expected a pair each"
            )
        check_layers(student, teacher, axes=("batch", "heads", "queries", "keys"))
        pairs = zip(student, teacher, strict=True)
        distances = [self._distance(widen(ours), widen(theirs.detach())) for ours, theirs in pairs]
        return torch.stack(distances).mean()

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        distance = torch.linalg.matrix_norm(student - teacher)
        if self.relative:
            distance = distance / torch.linalg.matrix_norm(teacher).clamp_min(1e-6)
        return distance.mean()
