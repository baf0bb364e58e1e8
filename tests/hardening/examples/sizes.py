"""Random small sizes and tensors, and the record of a call."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transmamba import ops


class Call(NamedTuple):
    """A callable and its arguments; `then` are the arguments of calling the result, for a module."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    then: dict[str, Any] | None = None


class Sizes:
    """Random sizes by name, always the same ones for one name, and tensors of them."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self._random, self._scale, self._known = random.Random(seed), scale, {}
        self._generator = torch.Generator().manual_seed(seed)

    def __getitem__(self, name: str) -> int:
        """Draw a size of 1 to 5."""
        return self._known.setdefault(name, self._random.randint(1, 5))

    def normal(self, axes: str) -> Tensor:
        """Draw normal numbers times the scale; `axes` are names of sizes, or numbers."""
        shape = [int(a) if a.isdigit() else self[a] for a in axes.split()]
        return torch.randn(shape, generator=self._generator) * self._scale

    def positive(self, axes: str) -> Tensor:
        """Draw numbers between 0 and 1, whatever the scale."""
        return torch.sigmoid(self.normal(axes))

    def whole(self, axes: str, below: int) -> Tensor:
        """Draw integers from 0."""
        return (self.positive(axes) * below).long().clamp(0, below - 1)

    def mask(self, axes: str) -> Tensor:
        """Draw a mask that is True for about half, and for the first of a row."""
        mask = self.normal(axes) > 0
        mask[:, 0] = True
        return mask

    def choice(self, *options: Any) -> Any:
        """Draw one of the options."""
        return self._random.choice(options)


def orders_of(s: Sizes, count: int, length: int) -> list[ops.ScanOrder]:
    names = ("forward", "backward")
    return ops.scan_orders([names[i % 2] for i in range(count)], length)
