"""A student: its tensors, the facts that its modules add, and the table by which it inherits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from transmamba._checkpoint import Weights
from transmamba.transfer.plan import Entries

BLOCK = re.compile(r"(?:stages\.\d+\.)?blocks\.\d+\.")


@dataclass
class Table:
    """Rules by which a student inherits from one teacher.

    Attributes:
        plan: student name pattern -> (canonical names, axes).
        refused: student tensor -> why it has no counterpart although the table has an entry for it.
        differs: facts of the teacher that the student does not share.
    """

    plan: Entries
    refused: dict[str, str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)


class Student:
    """A student's tensors, and the facts that its module adds."""

    def __init__(self, weights: Weights, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self._module = tensors, weights if isinstance(weights, nn.Module) else None

    def attribute(self, name: str) -> Any:
        """Return an attribute of the module; None for a state dict."""
        return getattr(self._module, name, None)

    def part(self, name: str) -> nn.Module | None:
        """Return a submodule, if the student is a module and has it."""
        try:
            return None if self._module is None else self._module.get_submodule(name)
        except AttributeError:
            return None

    def norm(self, name: str) -> str:
        """Return the kind of a norm: "layer" or "rms". In a state dict a bias is the sign of a LayerNorm."""
        part = self.part(name)
        if part is None:
            return "layer" if f"{name}.bias" in self.tensors else "rms"
        return "rms" if "RMS" in type(part).__name__ else "layer"

    def gated(self, mlp: str) -> bool:
        """Check whether fc1 holds a value and a gate."""
        names = f"{mlp}.fc1.weight", f"{mlp}.fc2.weight"
        if not all(name in self.tensors for name in names):
            return False
        first, second = (self.tensors[name].shape for name in names)
        return first[0] == 2 * second[1]

    def activation(self, mlp: str) -> str:
        """Return the activation of an MLP; ours have GELU, gated ones SiLU, unless the module has another."""
        return getattr(self.part(mlp), "activation", None) or ("silu" if self.gated(mlp) else "gelu")

    @property
    def blocks(self) -> list[str]:
        """Prefixes of the blocks, such as "blocks.0."."""
        return list(dict.fromkeys(hit[0] for hit in map(BLOCK.match, self.tensors) if hit))

    @property
    def reads(self) -> str | None:
        """Images or text, by the stem; None for a student without one."""
        if any(name.startswith("patch_embed.") for name in self.tensors):
            return "images"
        return "text" if "embedding.weight" in self.tensors else None

    @property
    def placement(self) -> str:
        """Return the place of the blocks' norms: "pre" unless the module has another."""
        return getattr(self.part("blocks.0"), "placement", "pre")


def placed_share(student: Student, left: Mapping[str, str], written: set[str], beyond: Mapping[str, str]) -> float:
    """Return the share of the blocks' tensors, mixers and layers without a teacher layer aside, that is inherited."""
    blocks = (name for name in student.tensors if BLOCK.match(name) and ".mixer." not in name)
    names = [name for name in blocks if name not in left and name not in beyond]
    return sum(name in written for name in names) / len(names) if names else 1.0
