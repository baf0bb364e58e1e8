"""Numbers of the official implementations, in data/golden: `<case>.json` describes `<case>.safetensors`."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data" / "golden"
STORED_AS_FLOAT32 = ("block/", "dir/", "grad/param/")


class Golden(NamedTuple):
    """One case: its description and its tensors by name."""

    meta: dict
    tensors: dict[str, torch.Tensor]

    def part(self, prefix: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """Return the tensors whose name starts with `prefix/`, without it; floating ones in `dtype`."""
        found = {k.removeprefix(prefix + "/"): v for k, v in self.tensors.items() if k.startswith(prefix + "/")}
        return {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in found.items()}

    def check(self, name: str, got: torch.Tensor) -> None:
        """Compare with the tensor `name` within the tolerance of the case."""
        expected = self.tensors[name]
        tolerance = self.meta["tolerances"]["float64"]
        if got.dtype != torch.float64:
            tolerance = self.meta["tolerances"]["float32"]
            tolerance = tolerance if "rtol" in tolerance else tolerance[name.split("/")[0]]
        elif name.startswith(STORED_AS_FLOAT32):
            tolerance = {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(
            got.double(), expected.double(), **tolerance, msg=lambda message: f"{name}: {message}"
        )


def golden(case: str) -> Golden:
    """Read one case."""
    return Golden(json.loads((DATA / f"{case}.json").read_text()), load_file(DATA / f"{case}.safetensors"))
