"""The pairs of a teacher's and a student's tokens."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class TokenMatch:
    """The way from a teacher's tokens to a student's, by the positions of their tokens other than patches.

    Patches keep their order. A student without class token leaves the teacher's tokens before the patches out; a single
    class token, wherever it stands, meets the teacher's first one. Positions come from the attribute `extra_tokens`
    of the models; a model without it is taken to have the layout of the other.

    Attributes:
        left_out: positions of the teacher's tokens that meet none of the student's.

    Raises:
        ValueError: the student has several tokens other than patches, and the teacher has others.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        theirs, ours = (getattr(model, "extra_tokens", None) for model in (teacher, student))
        known = theirs is not None and ours is not None
        self.theirs, self.ours = (tuple(theirs), tuple(ours)) if known else ((), ())  # type: ignore[arg-type]
        if self.ours != self.theirs and (len(self.ours) > 1 or not self.theirs):
            raise ValueError(
                f"the student has class or register tokens at {self.ours}, the teacher at {self.theirs}: build the"
                " student with one class token or none, or give fit_layers the way from the teacher's tokens to the"
                " student's, such as tokens=lambda x: torch.cat([x, x[:, :1]], 1)"
            )
        self.left_out = () if self.ours == self.theirs else self.theirs[len(self.ours) :]
        self.grids = [getattr(model, "grid", None) for model in (teacher, student)]

    def index(self, count: int) -> list[int]:
        """Return for each token of the student the position of the teacher's, of which there are `count`.

        Raises:
            ValueError: both lie on grids of as many patches, and the grids differ.
        """
        self._check_grids(count - len(self.theirs))
        if self.ours == self.theirs:
            return list(range(count))
        places = dict(zip(self.ours, self.theirs, strict=False))
        patches = iter(i for i in range(count) if i not in self.theirs)
        total = count - len(self.theirs) + len(self.ours)
        return [places[i] if i in places else next(patches) for i in range(total)]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the teacher's tokens (batch, token, dim) that the student's meet, in the student's order."""
        if self.ours == self.theirs:
            self._check_grids(tokens.shape[1] - len(self.theirs))
            return tokens
        return tokens.index_select(1, torch.tensor(self.index(tokens.shape[1]), device=tokens.device))

    def _check_grids(self, patches: int) -> None:
        theirs, ours = (_sides(grid) for grid in self.grids)
        if theirs and ours and theirs != ours and math.prod(theirs) == math.prod(ours) == patches:
            raise ValueError(
                f"the student's patches lie on a grid of {ours}, the teacher's on {theirs}: they are as many, and each"
                " would meet another place; build both for the same image, or say with tokens= how they meet"
            )


def _sides(grid: Any) -> tuple[int, ...]:
    return tuple(grid) if isinstance(grid, tuple | list | torch.Size) else ()
