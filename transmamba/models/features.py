"""The `Backbone` protocol, and `Features`, the record of intermediate tokens."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from transmamba._typing import typed
from transmamba.ops.orders import Grid, ScanOrder


class Features(NamedTuple):
    """Tokens from inside a backbone; every tensor is `(batch, token, dim)`.

    Attributes:
        last: the stream after the final norm, which is the head's input.
        layers: the residual stream after each block, second residual included, before the final norm.
        grid: rows and columns (or frames, rows, columns) of the patch tokens.
        directions: `directions[k][i]` is the share of direction k in the mixer output of block i, its tokens in the
            order in which k visits them; empty unless asked for. Brought back to natural order, the shares of a block
            add up to its mixer output (less the bias of the output projection).
        orders: the scan order of each direction; of the last layer where `grids` differ.
        extra: positions of the tokens other than patches (class, distillation, register tokens).
        grids: the grid of every layer, where it is not `grid` for all of them.
    """

    last: Tensor
    layers: tuple[Tensor, ...]
    grid: Grid
    directions: tuple[tuple[Tensor, ...], ...] = ()
    orders: tuple[ScanOrder, ...] = ()
    extra: tuple[int, ...] = ()
    grids: tuple[Grid, ...] = ()


@runtime_checkable
class Backbone(Protocol):
    """Any module with these methods is a backbone; nothing has to be inherited or registered."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        ...

    def forward_features(self, x: Tensor, directions: bool = False) -> Features:
        """Return the tokens of the last and of every layer, and of every direction if asked for."""
        ...

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the final tokens and the stream after the chosen blocks: None all, n the last n, or a list."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimiser should not shrink, or patterns such as "*.A_log"."""
        ...

    def reset_parameters(self) -> None:
        """Draw the initial values again, for instance after a start on the meta device."""
        ...


@typed
def select_layers(layers: Sequence[Tensor], indices: int | Sequence[int] | None) -> list[Tensor]:
    """Read `indices` as timm does: None all, n the last n, a sequence those positions (negative from the end).

    Raises:
        ValueError: a position does not exist.
    """
    depth = len(layers)
    if isinstance(indices, int) and not 0 <= indices <= depth:
        raise ValueError(f"cannot select the last {indices} of {depth} layers")
    wanted = range(depth) if indices is None else range(depth - indices, depth) if isinstance(indices, int) else indices
    for i in wanted:
        if not -depth <= i < depth:
            raise ValueError(f"layer {i} does not exist: expected {-depth} to {depth - 1}")
    return [layers[i] for i in wanted]
