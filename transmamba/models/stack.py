"""A stack of blocks: the part of every backbone between its stem and its head."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transmamba._typing import typed
from transmamba.ops import ScanOrder, permute_tokens


class Streams(NamedTuple):
    """Outputs of the blocks: the stream after each, and by direction (in scan order) its mixer output."""

    layers: tuple[Tensor, ...]
    directions: tuple[tuple[Tensor, ...], ...]


class BlockStack(nn.ModuleList):
    """A list of blocks called as `block(tokens, orders, *context)`; each also has `forward_directions`.

    Without orders the blocks scan the tokens as they come.

    Attributes:
        recompute: recompute the inside of each block in the backward instead of keeping it.
    """

    recompute = False

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the blocks."""
        return super().__iter__()

    def forward(self, tokens: Tensor, orders: Sequence[ScanOrder] | None, *context: Any) -> Tensor:
        """Return the stream after the last block."""
        for block in self:
            tokens = self.run(block, tokens, orders, *context)
        return tokens

    def streams(
        self, tokens: Tensor, orders: Sequence[ScanOrder] | None, *context: Any, directions: bool = False
    ) -> Streams:
        """Return the stream after each block, and with `directions` each direction's share of every mixer output."""
        layers, shares = [], []
        for block in self:
            if directions:
                tokens, own = self.run(block.forward_directions, tokens, orders, *context)
                pairs = zip(own, [None] if orders is None else orders, strict=True)
                shares.append([share if order is None else permute_tokens(share, order) for share, order in pairs])
            else:
                tokens = self.run(block, tokens, orders, *context)
            layers.append(tokens)
        return Streams(tuple(layers), tuple(zip(*shares, strict=True)))

    def run(self, block: Any, *arguments: Any) -> Any:
        """Call a block, or a method of one, and recompute its inside in the backward if `recompute` is set."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)


@typed
def recompute_blocks(model: nn.Module, enabled: bool = True) -> None:
    """Let the backward of a backbone recompute the inside of its blocks: less memory, one more forward.

    Raises:
        ValueError: the model has no `BlockStack`.

    Example:
        >>> recompute_blocks(nn.Sequential(BlockStack()))
    """
    stacks = [module for module in model.modules() if isinstance(module, BlockStack)]
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no BlockStack: wrap its blocks with torch.utils.checkpoint")
    for stack in stacks:
        stack.recompute = enabled


Builders = Callable[..., nn.Module] | Sequence[Callable[..., nn.Module]]


def per_layer(builders: Builders, depth: int, name: str) -> list[Callable[..., nn.Module]]:
    """Repeat one builder for all layers, or take one per layer.

    Raises:
        ValueError: there is not one per layer.
    """
    if callable(builders):
        return [builders] * depth
    if len(builders) != depth:
        raise ValueError(f"{name} has {len(builders)} entries for {depth} layers: give one builder, or one per layer")
    return list(builders)


def output_layer(mixer: Any) -> nn.Linear | None:
    """Return the last linear layer of a mixer; None if it goes by none of our names."""
    return getattr(mixer, "out_proj", None) or getattr(mixer, "proj", None)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return rates from zero at the first block to `rate` at the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def reset_children(model: nn.Module) -> None:
    """Draw the initial values of everything inside `model` again, the innermost modules first.

    Parameters of `model` itself, such as a position table, are left to its own `reset_parameters`.

    Raises:
        TypeError: a module inside owns parameters and has no `reset_parameters`.
    """

    def reset(module: Any) -> None:
        if module is model:
            return
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif owned := [name for name, _ in module.named_parameters(recurse=False)]:
            raise TypeError(
                f"{type(module).__name__} owns {', '.join(owned)} and has no reset_parameters: give it one that draws"
                " them, or they would keep their values here and stay empty after to_empty"
            )

    model.apply(reset)


@torch.no_grad()
def init_linear(linear: nn.Linear) -> None:
    """Draw the weight from a truncated normal of deviation 0.02, and set the bias to zero."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_head(head: nn.Module) -> None:
    """Initialise the head of a classifier; a model without classes has an identity in its place."""
    if isinstance(head, nn.Linear):
        init_linear(head)


@torch.no_grad()
def init_patches(conv: nn.Conv2d | nn.Conv3d) -> None:
    """Weight from a truncated normal of deviation 1 / sqrt(inputs of an output), bias zero."""
    nn.init.trunc_normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


@torch.no_grad()
def shrink_output(linear: nn.Linear, depth: int) -> None:
    """Divide the weight of a residual branch's last layer by sqrt(depth), so that the stream does not grow with it."""
    linear.weight /= depth**0.5
