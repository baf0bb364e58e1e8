"""What a transfer did."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SubcloneReport:
    """Every tensor of the student: where it came from, or why it was left alone.

    Attributes:
        copied: student name -> teacher name, where every number was taken over unchanged.
        sliced: student name -> teacher name and what was done, where neurons were chosen, rows resized or values made.
        skipped: student name -> reason.
        kept: axis name -> the teacher's neurons that stay, for axes that became narrower.
        layers: student layer -> teacher layer.
        fraction: share of the student's numbers that was initialised, tied tensors counted once.
    """

    copied: Mapping[str, str]
    sliced: Mapping[str, str]
    skipped: Mapping[str, str]
    kept: Mapping[str, tuple[int, ...]]
    layers: Mapping[int, int]
    fraction: float

    @property
    def inherited(self) -> frozenset[str]:
        """Names of the student's tensors that were written, for `param_groups`."""
        return frozenset(self.copied) | frozenset(self.sliced)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, fit for JSON."""
        plain = asdict(self)
        return plain | {"kept": {name: list(kept) for name, kept in self.kept.items()}}

    def __str__(self) -> str:
        """A table; tensors that differ in layer numbers alone share a line. `to_dict` has them apart."""
        kinds = (("copied", self.copied), ("sliced", self.sliced), ("skipped", self.skipped))
        rows = Counter(
            (_any_layer(name), kind, _any_layer(text)) for kind, names in kinds for name, text in names.items()
        )
        width = max((len(name) for name, _, _ in rows), default=0)
        lines = [f"{name:{width}}  {count:3} {kind:7}  {text}" for (name, kind, text), count in rows.items()]
        axes = Counter((_any_layer(name), len(kept)) for name, kept in self.kept.items())
        lines += [f"axis {name}: {size} neurons kept" for name, size in axes]
        lines.append(
            f"{len(self.copied)} copied, {len(self.sliced)} sliced, {len(self.skipped)} skipped;"
            f" {self.fraction:.1%} of the student's parameters initialised"
        )
        return "\n".join(lines)


def _any_layer(text: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=[.:,;\s]|$)", "*", text)
