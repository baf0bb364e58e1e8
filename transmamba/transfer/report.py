"""What a transfer did."""

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
        rows = [
            (name, kind, text)
            for kind, names in (("copied", self.copied), ("sliced", self.sliced), ("skipped", self.skipped))
            for name, text in names.items()
        ]
        width = max((len(name) for name, _, _ in rows), default=0)
        lines = [f"{name:{width}}  {kind:7}  {text}" for name, kind, text in rows]
        lines += [f"axis {name}: {len(kept)} neurons kept" for name, kept in self.kept.items()]
        lines.append(
            f"{len(self.copied)} copied, {len(self.sliced)} sliced, {len(self.skipped)} skipped;"
            f" {self.fraction:.1%} of the student's parameters initialised"
        )
        return "\n".join(lines)
