"""Adaptive distillation of every scan direction apart."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from transmamba._typing import check_choice, typed
from transmamba.distill.adaptive import AdaptiveDetails, AdaptiveLayerDistill
from transmamba.distill.bridge import Layout, check_layouts
from transmamba.distill.checks import Layers, check_mask
from transmamba.ops.orders import ScanOrder, scan_order

Order = Literal["scan", "raster"]


class DirectionalDetails(NamedTuple):
    """Per direction: its name, its unweighted loss, and the details of its layers; all detached."""

    directions: tuple[str, ...]
    loss: Float[Tensor, " direction"]
    details: tuple[AdaptiveDetails, ...]


class MultiDirectionalDistill(nn.Module):
    """Compare each scan direction of the student with the teacher in that direction's order.

    With T the teacher, pi_k the permutation of direction k and S_k its student layers in scan order,

        loss = sum_k v_k Adaptive(T[pi_k], S_k),

    where Adaptive takes its layer weights in each direction apart. The teacher is normalised once and permuted once
    per direction; the student is never copied.

    Args:
        inner: the loss of one direction; None takes `AdaptiveLayerDistill()`. A pooled similarity is refused: a mean
            over tokens does not see their order.
        order: the order of the student's tokens: "scan" (as the direction visits them) or "raster" (already put back).
        reduction: "sum" over the directions (the paper) or "mean".
        direction_weights: v_k by name; None takes 1 for each.

    Raises:
        ValueError: the inner similarity is pooled, a name is unknown, or a weight is not finite.
        TypeError: an argument has another type.

    Reference:
        TransMamba, arXiv 2502.15130, Eqs. 6-10 (two directions) and the figure of v2 (several).

    Example:
        >>> column = torch.ones(2, 6, 3)
        >>> MultiDirectionalDistill()({"column": [column]}, torch.ones(2, 6, 3), grid=(2, 3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        inner: AdaptiveLayerDistill | None = None,
        *,
        order: Order = "scan",
        reduction: Literal["sum", "mean"] = "sum",
        direction_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(inner, AdaptiveLayerDistill | None):
            raise TypeError(f"inner must be an AdaptiveLayerDistill, got {inner!r}")
        if not isinstance(direction_weights, Mapping | None):
            raise TypeError(f"direction_weights must map names to weights, got {direction_weights!r}")
        self.inner = AdaptiveLayerDistill() if inner is None else inner
        if self.inner.similarity == "pooled":
            raise ValueError("similarity='pooled' cannot tell directions apart: use 'token' or 'flatten'")
        check_choice("order", order, ("scan", "raster"))
        check_choice("reduction", reduction, ("sum", "mean"))
        for name, weight in (direction_weights or {}).items():
            if not math.isfinite(weight):
                raise ValueError(f"weight of direction {name!r} must be finite, got {weight}")
        self.order, self.reduction = order, reduction
        # floats, because torch takes no integer beyond 64 bits
        self.direction_weights = (
            None if direction_weights is None else {name: float(weight) for name, weight in direction_weights.items()}
        )

    @typed
    def forward(
        self,
        student: Mapping[str, Layers],
        teacher: Shaped[Tensor, "batch token dim"] | Layers,
        mask: Bool[Tensor, "batch token"] | None = None,
        *,
        grid: int | Sequence[int] | None = None,
        order: Order | None = None,
        orders: Mapping[str, ScanOrder] | None = None,
        layouts: tuple[Layout, Layout] | None = None,
        return_details: bool = False,
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], DirectionalDetails]:
        """Compute the loss, and on request its parts.

        Args:
            student: the layers of each direction, calibrated; the key names a scan order (`ops.scan_order`).
            teacher: one feature in natural token order, or one per teacher layer.
            mask: True marks a real token, in natural order.
            grid: the grid of the tokens; None is one axis, enough for `forward` and `backward`.
            order: another order than the module's, for this call.
            orders: permutations of your own, by the keys of `student` (with order="scan").
            layouts: `models.Features` of student and teacher, to check that their tokens stand in the same places; the
                shapes cannot show whether a class token is in front or in the middle.
            return_details: also return the loss, cosines and weights of each direction.

        Raises:
            ValueError: there is no direction, an order does not fit the tokens, a weight is missing, or the layers
                do not fit the teacher.
        """
        if not student:
            raise ValueError("student is empty: expected at least one direction")
        if layouts is not None:
            check_layouts(*layouts)
        units: dict[int, Tensor] = {}
        details, losses = [], []
        for name, layers in student.items():
            chosen = self.inner.match(layers, teacher, f"{name} student")
            check_mask(mask, layers[0])
            missing = {layer for layer in chosen if layer not in units}
            units |= {layer: self.inner.unit(teacher, layer, mask) for layer in missing}
            index = None
            if (self.order if order is None else order) == "scan":
                index = _scan_index(name, next(iter(units.values())), grid, orders)
            ordered = {layer: _permute(units[layer], index) for layer in set(chosen)}
            mask_scan = None if mask is None else _permute(mask, index)
            loss, detail = self.inner.compare(layers, [ordered[layer] for layer in chosen], mask_scan)
            losses.append(self._weight(name) * loss)
            details.append(detail)
        total = torch.stack(losses).sum() / (len(losses) if self.reduction == "mean" else 1)
        parts = torch.stack([detail.loss for detail in details])
        return (total, DirectionalDetails(tuple(student), parts, tuple(details))) if return_details else total

    def _weight(self, name: str) -> float:
        if self.direction_weights is None:
            return 1.0
        if name not in self.direction_weights:
            known = ", ".join(self.direction_weights)
            raise ValueError(f"direction {name!r} has no weight: direction_weights names {known}")
        return self.direction_weights[name]


def _scan_index(
    name: str, target: Tensor, grid: int | Sequence[int] | None, orders: Mapping[str, ScanOrder] | None
) -> Tensor | None:
    """Return the natural token at each step of the scan; None if they agree."""
    if orders is not None and name in orders:
        index = orders[name].index
    elif name in ("forward", "raster"):
        return None
    else:
        index = scan_order(name, target.shape[1] if grid is None else grid, target.device).index
    if len(index) != target.shape[1]:
        raise ValueError(f"direction {name!r} orders {len(index)} tokens, the teacher has {target.shape[1]}")
    return index


def _permute(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x.index_select(1, index)


class BidirectionalDistill(nn.Module):
    """Compare the forward scan with the teacher and the backward scan with the teacher reversed.

    loss = Adaptive(T, S_forward) + Adaptive(reverse(T), S_backward): `MultiDirectionalDistill` with two directions.

    Args:
        inner: the loss of one direction; None takes `AdaptiveLayerDistill()`.
        order: the order of the backward features: "scan" (last token first, as the branch computes them) or "raster"
            (already flipped back).
        reduction: "sum" (the paper) or "mean" of the two.
        direction_weights: weights of "forward" and "backward"; None takes 1 for both.

    Raises:
        ValueError: as `MultiDirectionalDistill`.

    Reference:
        TransMamba, arXiv 2502.15130, Eqs. 9-10.

    Example:
        >>> forward, backward = [torch.ones(2, 5, 3)], [torch.ones(2, 5, 3)]
        >>> BidirectionalDistill()(forward, backward, torch.ones(2, 5, 3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        inner: AdaptiveLayerDistill | None = None,
        *,
        order: Order = "scan",
        reduction: Literal["sum", "mean"] = "sum",
        direction_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.distill = MultiDirectionalDistill(
            inner, order=order, reduction=reduction, direction_weights=direction_weights
        )

    @typed
    def forward(
        self,
        forward: Layers,
        backward: Layers,
        teacher: Shaped[Tensor, "batch token dim"] | Layers,
        mask: Bool[Tensor, "batch token"] | None = None,
        return_details: bool = False,
        *,
        order: Order | None = None,
        layouts: tuple[Layout, Layout] | None = None,
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], DirectionalDetails]:
        """Compute the loss, and on request its parts.

        Args:
            forward: the layers of the forward scan, calibrated.
            backward: the layers of the backward scan.
            teacher: one feature in natural token order, or one per teacher layer.
            mask: True marks a real token, in natural order.
            return_details: also return the loss, cosines and weights of each direction.
            order: another order than the module's, for this call.
            layouts: `models.Features` of student and teacher, to check that their tokens stand in the same places: a
                Vim and a ViT have equally many, with the class token elsewhere. `DirectionBridge` aligns them.

        Raises:
            ValueError: the numbers of layers differ, a layer differs in shape from its teacher, or the layouts differ.
        """
        if len(forward) != len(backward):
            raise ValueError(f"{len(forward)} forward layers, {len(backward)} backward layers: expected equally many")
        pair = {"forward": forward, "backward": backward}
        return self.distill(pair, teacher, mask, order=order, layouts=layouts, return_details=return_details)
