"""The `Backbone` protocol, and `Features`, the record of intermediate tokens."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from transmamba._typing import check_choice, typed
from transmamba.ops.orders import Grid, ScanOrder
from transmamba.ops.resize import leave_out

# ends of the names of position tables, decay rates, direct paths and step biases: a decay of these shrinks positions,
# memory or step sizes, not capacity
UNDECAYED = ("pos_embed", "A_log", ".D", "dt_bias")


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
        layer_orders: the `orders` of every layer, where `grids` differ.
    """

    last: Tensor
    layers: tuple[Tensor, ...]
    grid: Grid
    directions: tuple[tuple[Tensor, ...], ...] = ()
    orders: tuple[ScanOrder, ...] = ()
    extra: tuple[int, ...] = ()
    grids: tuple[Grid, ...] = ()
    layer_orders: tuple[tuple[ScanOrder, ...], ...] = ()

    def as_map(self, layer: int) -> Tensor:
        """Return the tokens of a layer without class tokens, as a map (batch, dim, rows, columns).

        Raises:
            ValueError: the tokens lie on one axis, as those of a text.
        """
        tokens, grid = self.layers[layer], self.grids[layer] if self.grids else self.grid
        if len(grid) < 2:
            raise ValueError(f"a map needs a grid of rows and columns, the tokens have {grid}: use output_fmt='NLC'")
        return leave_out(tokens, sorted(self.extra)).transpose(1, 2).unflatten(2, grid)


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


class DecayMethods:
    """Mixin for an `nn.Module`: the method that an optimiser's groups follow from."""

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimiser should not shrink."""
        return undecayed(cast(nn.Module, self))


def undecayed(model: nn.Module, *more: str) -> set[str]:
    """Return the parameters of `UNDECAYED` kinds, and those whose names end as one of `more`."""
    return {name for name, _ in model.named_parameters() if name.endswith((*UNDECAYED, *more))}


class FeatureMethods(DecayMethods):
    """Mixin for an `nn.Module` with `forward_features`: timm's methods that follow from it.

    The defaults fit a model with `patch_embed.proj`, `blocks` and a linear `head` that reads the mean of the tokens. A
    model with another readout overrides `pool_tokens`, one with another stem `stream_size`, one with class tokens
    `extra_tokens`.

    Example:
        >>> import torch
        >>> from transmamba.models import VisionMamba
        >>> model, x = VisionMamba(img_size=8, patch_size=4, dim=12, depth=2, num_classes=5), torch.zeros(1, 3, 8, 8)
        >>> model.forward_head(model.forward_features(x)).shape, model.feature_info[-1]
        (torch.Size([1, 5]), {'num_chs': 12, 'reduction': 4, 'module': 'blocks.1'})
        >>> model.forward_intermediates(x, 1, output_fmt="NCHW")[1][0].shape
        torch.Size([1, 12, 2, 2])
    """

    def forward_head(self, features: Features | Tensor, pre_logits: bool = False) -> Tensor:
        """Compute the result of `forward` from that of `forward_features`, or from its `last`.

        Args:
            features: of this model.
            pre_logits: leave the head out, and return its input.
        """
        pooled = self.pool_tokens(features if isinstance(features, Tensor) else features.last)
        return pooled if pre_logits else self.head(pooled)  # type: ignore[attr-defined]

    def pool_tokens(self, last: Tensor) -> Tensor:
        """Return the head's input from the tokens after the final norm."""
        return last.mean(1)

    @property
    def extra_tokens(self) -> tuple[int, ...]:
        """The positions of the tokens other than patches, as in `Features.extra`: none, unless overridden."""
        return ()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        *,
        output_fmt: Literal["NLC", "NCHW"] = "NLC",
        **context: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the final tokens and the stream after the chosen blocks, of a pyramid the chosen stages.

        Args:
            x: the input.
            indices: None all, n the last n, or a list.
            output_fmt: "NLC" gives (batch, token, dim), class tokens included; "NCHW" maps without them. The final
                tokens are always (batch, token, dim).
            context: other arguments of `forward_features`, such as the mask of a text.

        Raises:
            ValueError: a layer or a format does not exist, or the tokens are not a map.
        """
        check_choice("output_fmt", output_fmt, ("NLC", "NCHW"))
        features = self.forward_features(x, **context)  # type: ignore[attr-defined]
        ends = self.stage_ends(len(features.layers))
        chosen = [ends[i] for i in _chosen(len(ends), indices)]
        if output_fmt == "NCHW":
            return features.last, [features.as_map(i) for i in chosen]
        return features.last, [features.layers[i] for i in chosen]

    def stage_ends(self, depth: int) -> list[int]:
        """Return the numbers of the layers that `forward_intermediates` can choose: all `depth`, unless overridden."""
        return list(range(depth))

    def stream_size(self) -> tuple[int, int]:
        """Return the width of the stream, and how many pixels, frames or tokens of the input a token stands for."""
        proj = self.patch_embed.proj  # type: ignore[attr-defined]
        return proj.out_channels, proj.stride[-1]

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, reduction and module name of each entry of `forward_intermediates`, by timm's keys."""
        width, reduction = self.stream_size()
        depth = len(self.blocks)  # type: ignore[attr-defined]
        return [{"num_chs": width, "reduction": reduction, "module": f"blocks.{i}"} for i in range(depth)]


class EncoderMethods(FeatureMethods):
    """`FeatureMethods` of a model without a head: its output are its tokens."""

    def forward_head(self, features: Features | Tensor, pre_logits: bool = False) -> Tensor:
        """Return the tokens, which are all that `forward` computes."""
        return features if isinstance(features, Tensor) else features.last


@typed
def select_layers(layers: Sequence[Tensor], indices: int | Sequence[int] | None) -> list[Tensor]:
    """Read `indices` as timm does: None all, n the last n, a sequence those positions (negative from the end).

    Raises:
        ValueError: a position does not exist.
    """
    return [layers[i] for i in _chosen(len(layers), indices)]


def _chosen(depth: int, indices: int | Sequence[int] | None) -> Sequence[int]:
    if isinstance(indices, int) and not 0 <= indices <= depth:
        raise ValueError(f"cannot select the last {indices} of {depth} layers")
    wanted = range(depth) if indices is None else range(depth - indices, depth) if isinstance(indices, int) else indices
    for i in wanted:
        if not -depth <= i < depth:
            raise ValueError(f"layer {i} does not exist: expected {-depth} to {depth - 1}")
    return wanted
