"""A checkpoint for a model of another size: what its tensors tell, and how head and position rows change."""

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.stack import init_linear

_log = logging.getLogger(__name__)


def told_classes(model: nn.Module, state: State, name: str = "head") -> dict[str, Any]:
    """`num_classes` of a checkpoint whose head, called `name`, fits `model` but for their number."""
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    ours = model.get_parameter("head.weight")
    if weight is None or bias is None or weight.dim() != 2 or weight.shape[1] != ours.shape[1]:
        return {}
    classes = len(weight)
    return {"num_classes": classes} if bias.shape == (classes,) and classes != len(ours) else {}


def told_side(table: Tensor | None, extra: int, cells: int) -> int | None:
    """Rows of the square grid that a position table of `extra` more rows is for; None if it has `cells` as wanted."""
    if table is None or table.dim() != 3 or table.shape[1] - extra == cells or table.shape[1] <= extra:
        return None
    side = math.isqrt(table.shape[1] - extra)
    return side if side * side == table.shape[1] - extra else None


def fresh_head(state: State, target: nn.Module) -> State:
    """`state`, with a head that starts anew if `target` has another number of classes."""
    old, classes = state["head.weight"], len(target.get_parameter("head.weight"))
    if len(old) == classes:
        return state
    _log.warning("the head starts anew: the checkpoint has %d classes, the model %d", len(old), classes)
    head = nn.Linear(old.shape[1], classes, dtype=old.dtype, device=old.device)
    init_linear(head)
    return {**state, **{f"head.{name}": value for name, value in head.state_dict().items()}}


def insert_row(table: Tensor, row: Tensor, position: int) -> Tensor:
    """`table` (1, positions, dim) with one more row at `position`."""
    return torch.cat([table[:, :position], row, table[:, position:]], 1)
