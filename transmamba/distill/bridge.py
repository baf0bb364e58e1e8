"""Bring a backbone's features and a teacher's tokens to the same places and width, whatever the layout of each."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from transmamba._typing import typed
from transmamba.distill.align import Interpolation, drop_tokens, resize_tokens
from transmamba.distill.calibrate import LayerCalibrators, Pads
from transmamba.ops.orders import Grid, ScanOrder, permute_tokens


@runtime_checkable
class Layout(Protocol):
    """The places of tokens: `models.Features` has those of its own."""

    @property
    def grid(self) -> Grid:
        """Rows and columns, or frames, rows and columns, of the patches."""
        ...

    @property
    def extra(self) -> tuple[int, ...]:
        """Positions of the tokens other than patches."""
        ...


class Tokens(NamedTuple):
    """Tokens with their layout, for a teacher that is not one of our backbones.

    Attributes:
        last: the tokens, class tokens included.
        grid: rows and columns (or frames, rows, columns) of the others.
        extra: positions of the class, distillation and register tokens.
    """

    last: Tensor
    grid: Grid
    extra: tuple[int, ...] = ()


class Sides(NamedTuple):
    """Both sides of a directional loss, in natural order, without class tokens, on the teacher's grid."""

    student: dict[str, list[Tensor]]
    teacher: Tensor


@typed
def check_layouts(student: Layout, teacher: Layout) -> None:
    """Refuse tokens that stand in different places, even if there are equally many.

    Raises:
        ValueError: the grids or the places of the class tokens differ.

    Example:
        >>> import torch
        >>> check_layouts(Tokens(torch.zeros(1, 5, 2), (2, 2), (0,)), Tokens(torch.zeros(1, 5, 3), (2, 2), (0,)))
    """
    mine, theirs = (tuple(sorted(side.extra)) for side in (student, teacher))
    if mine != theirs:
        raise ValueError(
            f"the student's class tokens stand at {mine}, the teacher's at {theirs}: the patches in between would meet"
            " their neighbours; bring both to one layout with distill.DirectionBridge or align_tokens, or drop the"
            " class tokens"
        )
    if tuple(student.grid) != tuple(teacher.grid):
        raise ValueError(
            f"the student's tokens lie on a grid of {student.grid}, the teacher's on {teacher.grid}: resize them with "
            "distill.DirectionBridge or align_tokens"
        )


@typed
def natural_shares(
    features: Any, grid: Sequence[int] | None = None, interpolation: Interpolation = "bilinear"
) -> list[list[Tensor]]:
    """Return every direction's share of each mixer output in natural order, without class tokens, on one grid.

    Args:
        features: `models.Features` with directions.
        grid: the grid wanted; None keeps that of each layer.
        interpolation: see `resize_tokens`.

    Raises:
        ValueError: the features have no directions, or a grid has another number of axes.

    Example:
        >>> import torch
        >>> from transmamba.models import Vim
        >>> model = Vim(8, 4, dim=12, depth=2, num_classes=5)
        >>> shares = natural_shares(model.forward_features(torch.zeros(2, 3, 8, 8), directions=True), (3, 3))
        >>> len(shares), [tuple(share.shape) for share in shares[0]]
        (2, [(2, 9, 12), (2, 9, 12)])
    """
    _check_record(features, "features", ("grid", "grids", "extra", "orders", "layer_orders", "directions"))
    if not features.directions:
        raise ValueError("the features have no directions: call forward_features(x, directions=True)")
    directions = []
    for k, layers in enumerate(features.directions):
        shares = []
        for i, x in enumerate(layers):
            own = features.grids[i] if features.grids else features.grid
            order = _order(features, i, k)
            x = _patches(x if order is None else permute_tokens(x, order.undo()), own, features.extra, "student")
            shares.append(x if grid is None else resize_tokens(x, own, grid, interpolation))
        directions.append(shares)
    return directions


class DirectionBridge(nn.Module):
    """Calibrators for every direction and layer of a student, and the way of both sides to them.

    The student's shares are brought to natural order, without class tokens, onto the teacher's grid and then to its
    width; the teacher only loses its class tokens. That fits isotropic students and pyramids alike, with class tokens
    anywhere. Compare the sides with `MultiDirectionalDistill(order="raster")`. For cosines per token, natural order on
    both sides gives the value that scan order on both sides gives.

    Args:
        student: `models.Features` of the student with directions, of any input; only shapes are read.
        teacher: `models.Features` of the teacher or `Tokens`; only shapes are read.
        pad: as for `LayerCalibrators`, such as `report.pads(student)`.
        interpolation: see `resize_tokens`.
        options: passed on to `LayerCalibrators`.

    Raises:
        ValueError: the student's features have no directions, or a grid does not hold its tokens; on the call, if the
            student has another number of directions or layers.

    Example:
        >>> import torch
        >>> from transmamba.models import Vim, ViT
        >>> size, x = dict(img_size=8, patch_size=4, dim=12, depth=2), torch.zeros(2, 3, 8, 8)
        >>> features = Vim(**size).forward_features(x, directions=True)
        >>> target = ViT(**size, heads=3).forward_features(x)
        >>> sides = DirectionBridge(features, target)(features, target)
        >>> list(sides.student), sides.student["0"][1].shape, sides.teacher.shape
        (['0', '1'], torch.Size([2, 4, 12]), torch.Size([2, 4, 12]))
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        pad: Pads = "right",
        interpolation: Interpolation = "bilinear",
        **options: Any,
    ) -> None:
        super().__init__()
        _check_record(teacher, "teacher", ("last", "grid", "extra"))
        natural_shares(student)  # a wrong layout fails here, not at the first step
        widths = [layer.shape[-1] for layer in student.directions[0]]
        self.interpolation: Interpolation = interpolation
        self.calibrators = nn.ModuleList(
            LayerCalibrators(widths, teacher.last.shape[-1], pad=pad, **options) for _ in student.directions
        )

    def reset_parameters(self) -> None:
        """Start all calibrators again."""
        for calibrators in self.calibrators:
            calibrators.reset_parameters()  # type: ignore[operator]

    def forward(self, student: Any, teacher: Any) -> Sides:
        """Return both sides; directions go by their number.

        Args:
            student: `models.Features` with directions.
            teacher: `models.Features` or `Tokens`.

        Raises:
            ValueError: the student has another number of directions or layers, or a grid does not hold its tokens.
        """
        _check_record(teacher, "teacher", ("last", "grid", "extra"))
        target = _patches(teacher.last, teacher.grid, teacher.extra, "teacher")
        shares = natural_shares(student, teacher.grid, self.interpolation)
        if len(shares) != len(self.calibrators):
            raise ValueError(f"got {len(shares)} directions, the bridge was made for {len(self.calibrators)}")
        pairs = zip(self.calibrators, shares, strict=True)
        return Sides({str(k): calibrate(layers) for k, (calibrate, layers) in enumerate(pairs)}, target)


def _check_record(value: Any, name: str, fields: Sequence[str]) -> None:
    """Refuse a value without the fields of a record of features, such as bare tensors."""
    absent = [field for field in fields if not hasattr(value, field)]
    if absent:
        record = (
            "models.Features, of forward_features" if "directions" in fields else "models.Features or distill.Tokens"
        )
        raise TypeError(f"{name} is a {type(value).__name__} without {', '.join(absent)}: expected {record}")


def _order(features: Any, layer: int, direction: int) -> ScanOrder | None:
    """Return the scan order of a share; None if it is in natural order, as those of attention."""
    orders = features.layer_orders[layer] if features.layer_orders else features.orders
    if features.grids and not features.layer_orders and len(set(features.grids)) > 1:
        raise ValueError("the grids of the layers differ, and Features.layer_orders is empty: give the orders by layer")
    return orders[direction] if orders else None


def _patches(
    x: Float[Tensor, "batch token dim"], grid: Sequence[int], extra: Sequence[int], side: str
) -> Float[Tensor, "batch kept dim"]:
    if math.prod(grid) + len(extra) != x.shape[1]:
        raise ValueError(
            f"the {side} has {x.shape[1]} tokens, its layout {len(extra)} extra ones and a grid of {tuple(grid)}: "
            "state both as they are"
        )
    return drop_tokens(x, extra) if extra else x
