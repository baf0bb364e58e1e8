"""The teacher of a plan: stored tensors under their own names, or canonical ones."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from transmamba._checkpoint import LazyTensors, Weights, named_tensors, shape_of
from transmamba.transfer.teachers import Translated
from transmamba.transfer.tensor_checks import check_source

Importance = Mapping[str, Tensor] | Callable[[str, Tensor], Tensor]


class Source(Mapping[str, Tensor]):
    """The teacher of a plan.

    A canonical matrix or norm without a bias has one of zeros here, because its value is then the same; a student's
    bias then becomes zero instead of keeping its random start.
    """

    def __init__(self, weights: Weights) -> None:
        self.translated = weights if isinstance(weights, Translated) else None
        self._tensors = named_tensors(weights)
        self._zeros: dict[str, str] = {}
        if self.translated is not None:
            biased = (
                (name, name.removesuffix("weight") + "bias") for name in self._tensors if name.endswith(".weight")
            )
            self._zeros = {bias: name for name, bias in biased if bias not in self._tensors}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._zeros:
            return torch.zeros(self.shape(name))
        return self._tensors[name].detach()

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._zeros

    def __len__(self) -> int:
        return len(self._tensors) + len(self._zeros)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or name in self._zeros

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        if name in self._zeros:
            return self.shape(self._zeros[name])[:1]
        return self._tensors.shape(name) if isinstance(self._tensors, Translated) else shape_of(self._tensors, name)

    def is_complex(self, name: str) -> bool:
        """Check whether a tensor has complex numbers, without reading it."""
        if name in self._zeros:
            return False
        stored = self._tensors if self.translated is None else self.translated.weights
        names = (name,) if self.translated is None else self.translated.sources(name)
        if isinstance(stored, LazyTensors):
            return any(stored.dtype(part) == "C64" for part in names)
        return any(stored[part].is_complex() for part in names)

    def label(self, name: str) -> str:
        """Return the stored name, to be shown to people."""
        if name in self._zeros:
            return "zero"
        return name if self.translated is None else self.translated.sources(name)[0]

    def note(self, name: str) -> str:
        """Describe in words how values change on the way from the stored tensor."""
        if name in self._zeros:
            return "the teacher has no bias here"
        return "" if self.translated is None else self.translated.note(name)

    def score(self, name: str, importance: Importance) -> Tensor | None:
        """Return the scores of a tensor, of size 1 along axes on which they are constant; None if it has none.

        Raises:
            ValueError: they have another shape than the tensor.
        """
        if name in self._zeros:
            return None
        if self.translated is not None:
            return self.translated.score(name, importance)
        if isinstance(importance, Mapping):
            return importance.get(name)
        return importance(name, self[name])

    def check(self, name: str) -> None:
        """Raise TypeError or ValueError unless a tensor can be read."""
        if name in self._zeros:
            return
        if self.translated is None:
            check_source(name, self._tensors)
        else:
            self.translated.check(name)

    def knows(self, name: str) -> bool:
        """Check that scores by this name belong to a tensor of the teacher."""
        return name in (self._tensors if self.translated is None else self.translated.weights)

    def unused(self, used: set[str]) -> tuple[str, ...]:
        """Return the stored tensors that none of the names in `used` is computed from."""
        if self.translated is None:
            return tuple(name for name in self._tensors if name not in used)
        taken = {stored for name in used & set(self.translated) for stored in self.translated.sources(name)}
        every = (stored for name in self.translated for stored in self.translated.sources(name))
        return tuple(dict.fromkeys(stored for stored in every if stored not in taken))
