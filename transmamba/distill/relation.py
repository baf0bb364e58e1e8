"""Distillation of relations: which tokens are alike, whatever the widths of the two models."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import checkpoint

from transmamba._typing import check_choice, check_sizes, typed
from transmamba.distill.align import resize_tokens
from transmamba.distill.bridge import Layout, check_layouts
from transmamba.distill.checks import Layers, check_layers, check_mask, real_tokens, widen
from transmamba.distill.similarity import batch_mean, inverse_norm
from transmamba.ops.orders import ScanOrder, permute_tokens

Resize = Literal["features", "relation"]
Grids = tuple[tuple[int, ...], tuple[int, ...]]


class TokenRelationDistill(nn.Module):
    """Match the cosines between the tokens of a student to those between the tokens of its teacher.

    With s_i and t_i the unit vectors of token i in student and teacher, and n real tokens,

        loss = 1 / (n (n - 1)) sum_{i != j} (s_i . s_j - t_i . t_j)^2,

    the mean over samples and over the student's features. Both sides may have any width, so that no calibrator is
    needed and none can absorb the deficits of the student. The cosines exist for `chunk` tokens at a time, and again
    in the backward, so that memory grows linearly with the number of tokens.

    Args:
        resize: how a teacher on another grid comes to the student's grid; None refuses one. "features" interpolates
            the teacher's tokens and compares the cosines between these; "relation" interpolates the teacher's matrix of
            cosines along both of its axes.
        chunk: tokens whose cosines with all others exist at once; changes memory and speed, not the value.
        process_group: take the mean over the samples of all its processes.

    Raises:
        ValueError: `resize` is unknown, or `chunk` is below 1.
        TypeError: `process_group` is none.

    Reference:
        After the activation matching of ViT-Linearizer, arXiv 2504.00037. Ours: the mean over pairs of different
        tokens, padding, scan orders, other grids, and the chunks.

    Example:
        >>> TokenRelationDistill()([torch.randn(2, 5, 3)], torch.randn(2, 5, 7)).shape
        torch.Size([])
    """

    def __init__(
        self, *, resize: Resize | None = None, chunk: int = 256, process_group: ProcessGroup | None = None
    ) -> None:
        super().__init__()
        check_sizes(chunk=chunk)
        check_choice("resize", resize, ("features", "relation", None))
        if not isinstance(process_group, ProcessGroup | None):
            raise TypeError(f"process_group must be a torch.distributed.ProcessGroup, got {process_group!r}")
        self.resize, self.chunk, self.process_group = resize, chunk, process_group

    @typed
    def forward(
        self,
        student: Layers,
        teacher: Float[Tensor, "batch token dim"] | Layers,
        mask: Bool[Tensor, "batch token"] | None = None,
        *,
        orders: Sequence[ScanOrder] | None = None,
        grids: Grids | None = None,
        layouts: tuple[Layout, Layout] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss; the teacher is detached.

        Args:
            student: features, such as layers or scan directions, [batch token dim] of any width each.
            teacher: one feature for all of them, or one for each, tokens in natural order.
            mask: True marks a real token, in natural order.
            orders: the scan order in which the tokens of each student feature stand; None is natural order.
            grids: grids of student and teacher, without other tokens, where `resize` is set.
            layouts: `models.Features` of student and teacher, to check that their tokens stand in the same places.

        Raises:
            ValueError: tokens, samples or layouts do not fit, there is not one order per feature, or grids are given
                without `resize`, missing with it, or come with a mask.
            TypeError: a feature is not a floating tensor.
        """
        if layouts is not None:
            check_layouts(*layouts)
        if (grids is None) != (self.resize is None):
            raise ValueError("grids and resize belong together: give both for a teacher on another grid, or neither")
        if grids is not None and mask is not None:
            raise ValueError("tokens of a grid have no padding: leave the mask out, or set resize=None")
        targets = [teacher] if isinstance(teacher, Tensor) else list(teacher)
        if len(targets) not in (1, len(student)):
            raise ValueError(f"{len(student)} student features, {len(targets)} of the teacher: expected 1, or as many")
        if orders is not None and len(orders) != len(student):
            raise ValueError(f"{len(student)} student features, {len(orders)} scan orders: expected one each")
        # wrong kinds of tensors have to be found before the teacher is normalised
        check_layers(targets, targets, axes=("batch", "tokens", "channels"), name="teacher")
        units = [self._target(target, mask, grids) for target in targets]
        check_layers([x[..., :1] if isinstance(x, Tensor) and x.dim() == 3 else x for x in student],
                     [unit[..., :1] for unit in units])  # fmt: skip
        check_mask(mask, student[0])
        losses = []
        for number, layer in enumerate(student):
            layer = layer if orders is None else permute_tokens(layer, orders[number].undo())
            losses.append(self._compare(_unit(layer, mask), units[number if len(units) > 1 else 0], mask))
        return batch_mean(torch.stack(losses).mean(0), mask, self.process_group)

    def _target(self, teacher: Tensor, mask: Tensor | None, grids: Grids | None) -> Tensor:
        """Return the teacher's vectors, whose products are the relations to match."""
        teacher = teacher.detach()
        if grids is None:
            check_mask(mask, teacher)
            return _unit(teacher, mask)
        ours, theirs = grids
        if self.resize == "features":
            return _unit(resize_tokens(widen(teacher), theirs, ours), None)
        # interpolating unit vectors interpolates the matrix of their products along both axes
        return resize_tokens(_unit(teacher, None), theirs, ours)

    def _compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean squared difference over the pairs of each sample."""
        tokens = student.shape[1]
        total = student.new_zeros(len(student))
        for start in range(0, tokens, self.chunk):
            total = total + checkpoint(_rows, student, teacher, start, start + self.chunk, use_reentrant=False)
        count = tokens if mask is None else mask.sum(1)
        pairs = torch.as_tensor(count * (count - 1), device=total.device)
        return total / pairs.clamp_min(1)


def _unit(x: Tensor, mask: Tensor | None) -> Tensor:
    x = widen(real_tokens(x, mask))
    return x * inverse_norm(x, (2,))


def _rows(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    """Return the sum of squares of some rows of the difference of both matrices, without the diagonal."""
    # autocast would take the products in half precision
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (x[:, start:stop] @ x.mT for x in (student, teacher.to(student.dtype)))
    steps = torch.arange(ours.shape[2], device=ours.device)
    same = steps[start:stop, None] == steps
    return (ours - theirs).masked_fill(same, 0).square().sum((1, 2))
