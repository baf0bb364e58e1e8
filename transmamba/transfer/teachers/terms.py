"""Computation of one canonical tensor from a checkpoint: a stored name, and a chain of small steps.

    src("h.{i}.attn.c_attn.weight").T.part(0, 3)                     a transposed fused matrix, its first third
    src("blocks.{i}.mlp.fc2.weight").scale_rows("blocks.{i}.ls2.gamma")      LayerScale, folded into the rows it scales
    src("layers.{i}.input_layernorm.weight") + 1                     a norm that stores its gain minus one
    src("embeddings.position_embeddings.weight").rows(2).table()     a position table whose first position is row 2

Some steps rearrange entries, the others change values. Rearrangements apply to scores of a weight as well; values are
folded in float32 at least. Nothing is read before it is asked for, so a teacher that does not fit into memory is read
tensor by tensor, and steps on the meta device give shapes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

Get = Callable[[str], Tensor]


class Step(NamedTuple):
    """One step; `values` steps write into their input, `others` are further tensors of the checkpoint they read."""

    apply: Callable[[Tensor, Get], Tensor]
    values: bool
    others: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Term:
    """A tensor of the checkpoint, and the steps that bring it to its canonical form; `{i}` is the layer.

    Attributes:
        name: the stored name.
        steps: the steps applied to it, in order.
        optional: the canonical tensor is absent where the stored one is.
    """

    name: str
    steps: tuple[Step, ...] = ()
    optional: bool = False

    @property
    def T(self) -> "Term":
        """Transpose a matrix: GPT-2's Conv1D stores (in, out). Vectors stay as they are."""
        return self._arrange(lambda x: x.t() if x.dim() == 2 else x)

    def part(self, index: int, count: int) -> "Term":
        """Take part `index` of `count` equal parts of the first axis, such as the keys of a fused matrix."""

        def take(x: Tensor) -> Tensor:
            if len(x) % count:
                raise ValueError(f"{self.name} has {len(x)} rows, which are not {count} equal parts")
            return x.unflatten(0, (count, -1))[index]

        return self._arrange(take)

    def rows(self, start: int, stop: int | None = None) -> "Term":
        """Take rows `start` to `stop`, to the last by default."""
        return self._arrange(lambda x: x[start:stop])

    def part_of_heads(self, index: int, count: int, heads: int) -> "Term":
        """Take part `index` of `count` of every head where heads lie one after the other: GPT-NeoX's fused matrix."""
        return self._arrange(lambda x: x.unflatten(0, (heads, count, -1))[:, index].flatten(0, 1))

    def slots(self, groups: int, count: int, start: int, stop: int) -> "Term":
        """Take slots `start` to `stop` of the `count` equal ones in every group of the first axis.

        Fused matrices with grouped heads: a group holds its query heads, one key head and one value head.
        """
        return self._arrange(lambda x: x.unflatten(0, (groups, count, -1))[:, start:stop].flatten(0, 2))

    def constant(self, make: Callable[[], Tensor]) -> "Term":
        """Make a tensor that the model computes and does not store; the stored one lends its dtype and device alone."""
        return self._arrange(lambda x: make().to(x.device, x.dtype))

    def ones(self, size: int) -> "Term":
        """Make the gain of a norm without parameters."""
        return self.constant(lambda: torch.ones(()).expand(size))

    def halves(self, heads: int, rotary: int | None = None) -> "Term":
        """Bring rotary pairs (0, 1), (2, 3), ... of each head to halves: all first entries, then all second ones.

        Args:
            heads: number of heads on the first axis.
            rotary: channels of a head that are rotated; all by default.
        """

        def split(x: Tensor) -> Tensor:
            by_head = x.unflatten(0, (heads, -1))
            turned = by_head.shape[1] if rotary is None else rotary
            order = [*range(0, turned, 2), *range(1, turned, 2), *range(turned, by_head.shape[1])]
            return by_head[:, order].flatten(0, 1)

        return self._arrange(split)

    def table(self) -> "Term":
        """Add the leading axis of a position table, or both leading axes of a token."""
        return self._arrange(lambda x: x.reshape((1,) * (3 - x.dim()) + tuple(x.shape)))

    def reshape(self, *shape: int) -> "Term":
        """Reshape, the entries in their order."""
        return self._arrange(lambda x: x.reshape(shape))

    def permute(self, *dims: int) -> "Term":
        """Permute the axes."""
        return self._arrange(lambda x: x.permute(dims))

    def scale_rows(self, gain: str) -> "Term":
        """Multiply each row with its entry of the stored vector `gain`."""
        step = lambda x, get: x.mul_(get(gain).to(x).reshape(-1, *(1,) * (x.dim() - 1)))  # noqa: E731
        return self._then(Step(step, True, (gain,), f"times {gain}"))

    def __mul__(self, factor: float) -> "Term":
        return self if factor == 1 else self._then(Step(lambda x, _: x.mul_(factor), True, (), f"times {factor:.6g}"))

    def __add__(self, value: float) -> "Term":
        return self._then(Step(lambda x, _: x.add_(value), True, (), f"plus {value:g}"))

    def plus(self, other: str, rows: slice = slice(None)) -> "Term":
        """Add the stored tensor `other`, or some of its rows; it is broadcast along leading axes."""
        return self._then(Step(lambda x, get: x.add_(get(other)[rows].to(x)), True, (other,), f"plus {other}"))

    def matmul(self, other: str, transpose: bool = False) -> "Term":
        """Multiply from the right by the stored matrix `other`, or by its transpose."""

        def multiply(x: Tensor, get: Get) -> Tensor:
            matrix = get(other).to(x)
            return x @ (matrix.t() if transpose else matrix)

        return self._then(Step(multiply, True, (other,), f"times the matrix {other}"))

    @property
    def maybe(self) -> "Term":
        """The same, absent where the checkpoint has no such tensor."""
        return replace(self, optional=True)

    @property
    def note(self) -> str:
        """The changes of values, in words."""
        return ", ".join(step.note for step in self.steps if step.note)

    def sources(self, layer: int | None = None) -> tuple[str, ...]:
        """Return the stored names that the term reads, its own first."""
        names = (self.name, *(other for step in self.steps for other in step.others))
        return tuple(name if layer is None else name.replace("{i}", str(layer)) for name in names)

    def read(self, get: Get, fresh: bool = False) -> Tensor:
        """Compute the canonical tensor.

        Args:
            get: name -> tensor; names hold `{i}` for the layer.
            fresh: the tensor that `get` gives for the term's own name is not shared, and may be written to.
        """
        x = get(self.name)
        for step in self.steps:
            if step.values:
                wide = x.to(torch.promote_types(x.dtype, torch.float32))
                x = wide if fresh or wide is not x else wide.clone()
                fresh = True
            x = step.apply(x, get)
        return x

    def arrange(self, score: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Bring a score of the stored tensor, of its `shape` or 1 along some axes, to the canonical layout.

        Axes along which the score is constant stay of size 1.
        """
        whole = tuple(score.shape) == shape
        x = score if whole else score.contiguous().expand(shape)
        for step in self.steps:
            x = x if step.values else step.apply(x, _no_tensor)
        constant = [] if whole else [dim for dim, stride in enumerate(x.stride()) if stride == 0 and x.shape[dim] > 1]
        for dim in constant:
            x = x.narrow(dim, 0, 1)
        return x

    def _arrange(self, step: Callable[[Tensor], Tensor]) -> "Term":
        return self._then(Step(lambda x, _: step(x), False))

    def _then(self, step: Step) -> "Term":
        return replace(self, steps=(*self.steps, step))


Terms = dict[str, Term]


def src(name: str) -> Term:
    """Start from the tensor of the checkpoint under `name`."""
    return Term(name)


def affine(canonical: str, name: str, steps: Callable[[Term], Term] = lambda term: term) -> Terms:
    """Return the weight of a linear layer or norm stored as `name`, and its bias if it has one."""
    return {
        f"{canonical}.weight": steps(src(f"{name}.weight")),
        f"{canonical}.bias": steps(src(f"{name}.bias")).maybe,
    }


def optional(terms: Terms) -> Terms:
    """Return the same terms, each absent where the checkpoint lacks its tensor."""
    return {name: term.maybe for name, term in terms.items()}


def sqrt(number: float | None) -> float:
    """Square root of a size, 1 if it is unknown."""
    return 1.0 if number is None else math.sqrt(number)


def _no_tensor(name: str) -> Tensor:
    raise AssertionError(f"rearranging reads no other tensor, asked for {name}")
