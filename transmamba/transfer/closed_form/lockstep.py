"""A teacher and a student side by side, at one layer of the student at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from transmamba._layer_maps import LayerMap, resolve_layer_map
from transmamba.transfer.closed_form.streams import Batch, Place, Taught, blocks_of, evaluating, start, teach


class Step(NamedTuple):
    """One batch at one layer: the input of the student's block, and the output of the teacher's."""

    place: Place
    taught: Taught


class Lockstep:
    """Streams of both models for all batches, kept in memory or computed from the inputs at every layer.

    Consecutive student layers of one teacher layer take it in equal parts, see `Taught.part`.

    Attributes:
        layer: the student layer that all batches are at.
        map: teacher layer of each student layer.

    Raises:
        ValueError: a model has no blocks, the layer map decreases or leaves a layer out, or there is no batch.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, batches: Iterable[Batch], layer_map: LayerMap, keep: bool
    ) -> None:
        self.models, self.batches, self.layer = (teacher, student), batches, 0
        self.theirs, self.ours = blocks_of(teacher, "teacher"), blocks_of(student, "student")
        self.map = ascending_map(layer_map, len(self.ours), len(self.theirs))
        self._kept: list[tuple[Place, Place]] | None = None
        self._taught: list[Taught] | None = None
        if keep:
            with evaluating(*self.models):
                self._kept = [self._start(batch) for batch in batches]
            _check_any(bool(self._kept))

    def steps(self) -> Iterator[Step]:
        """Yield all batches at the current layer; run it inside of `evaluating`."""
        last, part = self.map[self.layer], self._part()
        if self._kept is not None:
            if self._taught is None:
                first = 0 if self.layer == 0 else self.map[self.layer - 1] + (part[0] == 0)
                self._taught = [self._teach(place, first, last) for place, _ in self._kept]
            for (_, place), taught in zip(self._kept, self._taught, strict=True):
                yield Step(place, taught.part(*part))
            return
        some = False
        for batch in self.batches:
            some = True
            theirs, place = self._start(batch)
            for block in self.ours[: self.layer]:
                place = place.after(block)
            yield Step(place, self._teach(theirs, 0, last).part(*part))
        _check_any(some)

    def advance(self, observe: Callable[[Step, Tensor], None] | None = None) -> None:
        """Move on to the next student layer; `observe` gets every step and the student's stream after its block."""
        kept, block, (part, parts) = [], self.ours[self.layer], self._part()
        with evaluating(*self.models):
            for index, step in enumerate(self.steps() if observe is not None or self._kept is not None else ()):
                place = step.place.after(block)
                if observe is not None:
                    observe(step, place.tokens)
                if self._kept is not None and self._taught is not None:
                    taught = self._taught[index]
                    stream = taught.after if part + 1 == parts else taught.before
                    kept.append((self._kept[index][0].at(stream), place))
        self._kept = None if self._kept is None else kept
        self._taught, self.layer = None, self.layer + 1

    def _part(self) -> tuple[int, int]:
        """Return the number of this layer among those that follow the same teacher layer, and how many these are."""
        same = [layer for layer, theirs in enumerate(self.map) if theirs == self.map[self.layer]]
        return same.index(self.layer), len(same)

    def _start(self, batch: Batch) -> tuple[Place, Place]:
        teacher, student = self.models
        return start(teacher, self.theirs, batch), start(student, self.ours, batch)

    def _teach(self, place: Place, first: int, last: int) -> Taught:
        for block in self.theirs[first:last]:
            place = place.after(block)
        return teach(place, self.theirs[last])


def _check_any(some: bool) -> None:
    if not some:
        raise ValueError("no batch to fit on: give at least one, and batches that can be iterated over more than once")


def ascending_map(layer_map: LayerMap, student: int, teacher: int) -> list[int]:
    """Return the teacher layer of each student layer.

    Raises:
        ValueError: the layers decrease, or a student layer has none.
    """
    found = resolve_layer_map(layer_map, student, teacher)
    teachers = [found.get(layer, -1) for layer in range(student)]
    if any(after < max(before, 0) for before, after in zip([0, *teachers[:-1]], teachers, strict=True)):
        raise ValueError(
            f"the {student} student layers would follow teacher layers {teachers} of {teacher} (-1: none): expected one"
            " for each, from the bottom to the top, such as layer_map='uniform'"
        )
    return teachers
