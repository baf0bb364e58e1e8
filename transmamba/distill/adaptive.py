"""Adaptive layer distillation: many student layers, one teacher feature, the farthest layer weighs most."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from transmamba._typing import check_choice, typed
from transmamba.distill.bridge import Layout, check_layouts
from transmamba.distill.checks import Layers, check_layers, check_mask
from transmamba.distill.layer_map import TeacherLayers, check_teacher_layers, match_layers
from transmamba.distill.similarity import Similarity, batch_mean, cosine, unit_target

Weighting = Literal["ratio", "neg_cos", "ratio_raw", "uniform", "linear"]
WeightFunction = Callable[[Tensor], Tensor]


class AdaptiveDetails(NamedTuple):
    """Values that a training loop may want to log: detached tensors on the device of the loss, nothing read back."""

    cosine: Float[Tensor, " layer"]
    weight: Float[Tensor, "layer *batch"]
    loss: Float[Tensor, ""]


def _named_weights(cosines: Tensor, weighting: str, tau: float, eps: float) -> Tensor:
    layers = len(cosines)
    clamped = cosines.clamp(eps, 1)
    if weighting == "ratio":
        return torch.softmax(clamped.mean(0) / (tau * clamped), 0)
    if weighting == "neg_cos":
        return torch.softmax(-cosines / tau, 0)
    if weighting == "ratio_raw":
        return clamped.sum(0) / clamped
    if weighting == "uniform":
        return torch.full_like(cosines, 1 / layers)
    ramp = torch.arange(1, layers + 1, device=cosines.device, dtype=cosines.dtype)
    return (ramp / ramp.sum()).view(-1, *[1] * (cosines.dim() - 1)).expand_as(cosines)


class AdaptiveLayerDistill(nn.Module):
    """Pull every student layer towards one teacher feature, the farthest hardest.

    With c_i the cosine of student layer i and the teacher,

        loss = sum_i w_i (1 - c_i),    w = softmax_i( mean_j(c_j) / (tau c_i) ).

    The teacher is detached: a teacher that requires grad is read, never trained.

    Args:
        similarity: the vectors compared: "token" (channels of each token, then the mean over tokens), "flatten" (all
            tokens and channels as one vector), "pooled" (mean over tokens).
        weighting: "ratio" (the equation above), "neg_cos" softmax(-c / tau), "ratio_raw" sum(c) / c_i as a third party
            transcribed it, "uniform" (Eq. 4), "linear" (the ramp 1, 2, ... of the released code), a tensor of one
            weight per layer, or a function from the cosines [layer, ...] to weights of that shape.
        tau: temperature; as it grows, the weights tend to 1 / layers. The tau of the printed form is layers times ours.
        eps: cosines enter the ratio no smaller than this; near zero or below, the ratio would turn around.
        detach_weights: keep the gradient out of w; otherwise it pushes layers that are already good away.
        weight_scope: one set of weights per "batch", or one per "sample".
        scale: named weightings sum to one ("sum1") or to the number of layers ("mean_N"), which makes "uniform" the
            plain sum of Eq. 4. "ratio_raw", tensors and functions are used as they come.
        teacher_layers: with a sequence of teacher features: every student layer meets the "last" (the paper), or its
            own by a layer map, see `match_layers`. "proportional" was better in our measurements (docs/results.md);
            "uniform" and `report.layers` are the layers that a student inherited from.
        process_group: take cosines and weights from the batch of all its processes; the gradient is then right for
            training that averages over processes (DDP, FSDP).

    Raises:
        ValueError: tau is not positive and finite, eps not between 0 and 1, or a name is unknown.
        TypeError: an argument has another type.

    Reference:
        TransMamba, arXiv 2502.15130, Eqs. 4-5. The place of tau is ours.

    Example:
        >>> AdaptiveLayerDistill()([torch.ones(2, 5, 3)], torch.ones(2, 5, 3)).shape
        torch.Size([])
    """

    weighting: str | WeightFunction
    fixed_weights: Tensor | None

    def __init__(
        self,
        *,
        similarity: Similarity = "token",
        weighting: Weighting | Tensor | WeightFunction = "ratio",
        tau: float = 1.0,
        eps: float = 1e-2,
        detach_weights: bool = True,
        weight_scope: Literal["batch", "sample"] = "batch",
        scale: Literal["sum1", "mean_N"] = "sum1",
        teacher_layers: TeacherLayers = "last",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not (tau > 0 and math.isfinite(tau)):
            raise ValueError(f"tau must be positive and finite, got {tau}")
        if not 0 < eps < 1:
            raise ValueError(f"eps must lie between 0 and 1, got {eps}")
        if not isinstance(process_group, ProcessGroup | None):
            raise TypeError(f"process_group must be a torch.distributed.ProcessGroup, got {process_group!r}")
        check_choice("similarity", similarity, ("token", "flatten", "pooled"))
        check_choice("weight_scope", weight_scope, ("batch", "sample"))
        check_choice("scale", scale, ("sum1", "mean_N"))
        check_teacher_layers(teacher_layers)
        if isinstance(weighting, str):
            check_choice("weighting", weighting, ("ratio", "neg_cos", "ratio_raw", "uniform", "linear"))
        self.similarity: Similarity = similarity
        self.weighting = "tensor" if isinstance(weighting, Tensor) else weighting
        self.register_buffer("fixed_weights", weighting if isinstance(weighting, Tensor) else None, persistent=False)
        self.tau, self.eps = float(tau), eps
        self.detach_weights, self.weight_scope, self.scale = detach_weights, weight_scope, scale
        self.teacher_layers = teacher_layers
        self.process_group = process_group

    @typed
    def forward(
        self,
        student: Layers,
        teacher: Shaped[Tensor, "batch token dim"] | Layers,
        mask: Bool[Tensor, "batch token"] | None = None,
        return_details: bool = False,
        *,
        layouts: tuple[Layout, Layout] | None = None,
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], AdaptiveDetails]:
        """Compute the loss, and on request its details.

        Args:
            student: one feature per layer, calibrated to the teacher's width.
            teacher: one feature, or one per teacher layer (see `teacher_layers`).
            mask: True marks a real token; samples without one do not count.
            return_details: also return the cosines and weights.
            layouts: `models.Features` of student and teacher, to check that their tokens stand in the same places.

        Raises:
            ValueError: a sequence is empty, a layer differs in shape from its teacher, or the layouts differ.
            TypeError: a feature is not a floating tensor.
        """
        if layouts is not None:
            check_layouts(*layouts)
        chosen = self.match(student, teacher)
        check_mask(mask, student[0])
        units = {layer: self.unit(teacher, layer, mask) for layer in dict.fromkeys(chosen)}
        loss, details = self.compare(student, [units[layer] for layer in chosen], mask)
        return (loss, details) if return_details else loss

    def match(self, student: Layers, teacher: Tensor | Layers, name: str = "student") -> tuple[int, ...]:
        """Choose the teacher layer of each student layer and check that they fit; messages call the student `name`."""
        if isinstance(teacher, Tensor):
            if self.teacher_layers != "last":
                raise ValueError(f"teacher_layers={self.teacher_layers!r} needs a sequence of teacher layers, got one")
            teacher = [teacher]
        matched = len(student) > 0 and len(teacher) > 0
        chosen = match_layers(len(student), len(teacher), self.teacher_layers) if matched else ()
        check_layers(
            student, [teacher[layer] for layer in (chosen[:1] if len(set(chosen)) == 1 else chosen)], name=name
        )
        return chosen

    def unit(self, teacher: Tensor | Layers, layer: int, mask: Tensor | None) -> Tensor:
        """Return the unit vectors of one teacher layer."""
        return unit_target(teacher if isinstance(teacher, Tensor) else teacher[layer], self.similarity, mask)

    def compare(
        self, student: Layers, targets: Layers, mask: Tensor | None
    ) -> tuple[Float[Tensor, ""], AdaptiveDetails]:
        """Compute the loss against one target of unit vectors per layer, in the token order of the student."""
        pairs = zip(student, targets, strict=True)
        cosines = torch.stack([cosine(layer, target, self.similarity, mask) for layer, target in pairs])
        mean = batch_mean(cosines, mask, self.process_group)
        if self.weight_scope == "batch":
            weights = self.weights(mean)
            loss = (weights * (1 - mean)).sum()
        else:
            weights = self.weights(cosines)
            loss = batch_mean((weights * (1 - cosines)).sum(0), mask, self.process_group)
        return loss, AdaptiveDetails(mean.detach(), weights.detach(), loss.detach())

    def weights(self, cosines: Float[Tensor, "layer *batch"]) -> Float[Tensor, "layer *batch"]:
        """Compute the weight of each layer, given its cosine.

        Raises:
            ValueError: fixed or computed weights are not one per layer.
        """
        if self.detach_weights:
            cosines = cosines.detach()
        if self.fixed_weights is not None:
            if self.fixed_weights.shape != cosines.shape[:1]:
                shape = tuple(self.fixed_weights.shape)
                raise ValueError(f"weighting has shape {shape}: expected one weight per student layer, {len(cosines)}")
            return self.fixed_weights.to(cosines).view(-1, *[1] * (cosines.dim() - 1)).expand_as(cosines)
        if not isinstance(self.weighting, str):
            weights = self.weighting(cosines)
            if weights.shape != cosines.shape:
                raise ValueError(f"weighting returned shape {tuple(weights.shape)}: expected {tuple(cosines.shape)}")
            return weights.detach() if self.detach_weights else weights
        weights = _named_weights(cosines, self.weighting, self.tau, self.eps)
        return weights * len(cosines) if self.scale == "mean_N" and self.weighting != "ratio_raw" else weights

    def extra_repr(self) -> str:
        """Describe the choices that change the value of the loss."""
        return f"similarity={self.similarity!r}, weighting={self.weighting!r}, tau={self.tau}, scale={self.scale!r}"
