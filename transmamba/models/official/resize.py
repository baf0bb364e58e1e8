"""Change of a checkpoint's size: sizes inferred from its tensors, and its head and position rows resized."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.stack import init_linear

_log = logging.getLogger(__name__)


def infer_num_classes(model: nn.Module, state: State, name: str = "head") -> dict[str, Any]:
    """Return `num_classes` of a checkpoint whose head, called `name`, fits `model` but for their number."""
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if isinstance(model.get_submodule("head"), nn.Identity):
        return {}
    ours = model.get_parameter("head.weight")
    if weight is None or bias is None or weight.dim() != 2 or weight.shape[1] != ours.shape[1]:
        return {}
    classes = len(weight)
    return {"num_classes": classes} if bias.shape == (classes,) and classes != len(ours) else {}


def infer_grid_side(table: Tensor | None, extra: int, cells: int) -> int | None:
    """Infer the side of a square position table with `extra` more rows; None if it has `cells` patches as wanted."""
    if table is None or table.dim() != 3 or table.shape[1] - extra == cells or table.shape[1] <= extra:
        return None
    side = math.isqrt(table.shape[1] - extra)
    return side if side * side == table.shape[1] - extra else None


def fresh_head(state: State, target: nn.Module) -> State:
    """Give `state` a new head if `target` has another number of classes."""
    like, old = next(iter(state.values())), state.get("head.weight")
    wanted = target.get_submodule("head")
    if not isinstance(wanted, nn.Linear):
        return state
    before = 0 if old is None else len(old)
    if before == wanted.out_features:
        return state
    _log.warning("the head is new: the checkpoint has %d classes, the model %d", before, wanted.out_features)
    head = nn.Linear(wanted.in_features, wanted.out_features, dtype=like.dtype, device=like.device)
    init_linear(head)
    return {**state, **{f"head.{name}": value for name, value in head.state_dict().items()}}


def move_rows(
    table: Tensor, rows: Sequence[int], new_rows: Sequence[int], resize: Callable[[Tensor], Tensor]
) -> Tensor:
    """Resize a position table (1, position, dim): `rows` are moved unchanged to `new_rows`, the rest is resized."""
    patches = resize(table[:, [i for i in range(table.shape[1]) if i not in rows]])
    for row, new in zip(rows, new_rows, strict=True):
        patches = torch.cat([patches[:, :new], table[:, row : row + 1], patches[:, new:]], 1)
    return patches
