"""The report of a transfer."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transmamba._checkpoint import Weights, named_tensors
from transmamba.transfer.student import Student


@dataclass(frozen=True)
class SubcloneReport:
    """Every tensor of the student: where it came from, or why it was left alone.

    Attributes:
        copied: student name -> teacher name, where every number was taken over unchanged.
        sliced: student name -> teacher name and the change, where neurons were chosen, rows resized or values made.
        skipped: student name -> reason.
        kept: axis name -> the teacher's neurons that stay, for axes that became narrower.
        layers: student layer -> teacher layer.
        fraction: share of the student's numbers that was initialised; tied tensors count once, and so does a complex
            number, as in `numel()`.
        family: the teacher's family; None if a plan was given for stored names.
        differs: facts of the teacher that the student does not share, such as an activation.
        unused: teacher tensors that nothing was taken from.
    """

    copied: Mapping[str, str]
    sliced: Mapping[str, str]
    skipped: Mapping[str, str]
    kept: Mapping[str, tuple[int, ...]]
    layers: Mapping[int, int]
    fraction: float
    family: str | None = None
    differs: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def inherited(self) -> frozenset[str]:
        """Names of the student's tensors that were written, for `param_groups`."""
        return frozenset(self.copied) | frozenset(self.sliced)

    def pads(self, student: Weights) -> list[Literal["right"] | tuple[int, ...]]:
        """Return the `pad` of each block of the student, for calibrators that meet the channels it was cut from.

        A pyramid keeps other channels in every stage. "right" stands for a stream that kept all of the teacher's
        channels, or inherited none.

        Args:
            student: the student that the report is about.

        Example:
            >>> import torch
            >>> report = SubcloneReport({}, {}, {}, {"residual": (0, 2)}, {}, 0.0)
            >>> report.pads({"blocks.0.norm1.weight": torch.ones(2), "blocks.1.norm1.weight": torch.ones(2)})
            [(0, 2), (0, 2)]
        """
        blocks = [block.split(".") for block in Student(student, named_tensors(student)).blocks]
        axes = [f"residual.{parts[1]}" if parts[0] == "stages" else "residual" for parts in blocks]
        return [self.kept.get(axis, "right") for axis in axes]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers, fit for JSON."""
        plain = asdict(self)
        lists = {"differs": list(self.differs), "unused": list(self.unused)}
        return plain | lists | {"kept": {name: list(kept) for name, kept in self.kept.items()}}

    def __str__(self) -> str:
        """Format a table; tensors that differ only in layer numbers share a line. `to_dict` lists them one by one."""
        kinds = (("copied", self.copied), ("sliced", self.sliced), ("skipped", self.skipped))
        rows = Counter(
            (_any_layer(name), kind, _any_layer(text)) for kind, names in kinds for name, text in names.items()
        )
        width = max((len(name) for name, _, _ in rows), default=0)
        lines = [f"{name:{width}}  {count:3} {kind:7}  {text}" for (name, kind, text), count in rows.items()]
        axes = Counter((_any_layer(name), len(kept)) for name, kept in self.kept.items())
        lines += [f"axis {name}: {size} neurons kept" for name, size in axes]
        unused = Counter(map(_any_layer, self.unused))
        lines += [
            f"unused in the teacher: {name}" + (f" ({count})" if count > 1 else "") for name, count in unused.items()
        ]
        lines += [f"differs: {fact}" for fact in self.differs]
        lines += [f"teacher: {self.family}"] if self.family is not None else []
        lines.append(
            f"{len(self.copied)} copied, {len(self.sliced)} sliced, {len(self.skipped)} skipped;"
            f" {self.fraction:.1%} of the student's parameters initialised"
        )
        return "\n".join(lines)


def _any_layer(text: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=[.:,;\s]|$)", "*", text)
