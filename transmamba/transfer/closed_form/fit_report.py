"""The result of a layer-wise fit, and its log while it runs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn


class FitRow(NamedTuple):
    """One solved layer.

    Attributes:
        layer: student layer.
        teacher_layer: the teacher's layer that it follows.
        tokens: tokens that it was solved on.
        r2: share of the variance of the mixer's targets that its readout explains, on these tokens.
        mlp_r2: the same of the MLP; None if it was left as it was.
        stream_error: squared error of the student's stream after the block, relative to the teacher's variance.
        token_error: squared error of a token relative to the square of the teacher's, mean over the tokens.
    """

    layer: int
    teacher_layer: int
    tokens: int
    r2: float
    mlp_r2: float | None = None
    stream_error: float = float("nan")
    token_error: float = float("nan")


class FitReport(NamedTuple):
    """All solved layers, from the bottom to the top; `str` gives a table.

    Attributes:
        rows: one per layer.
        left_out: positions of the teacher's class and register tokens that no token of the student was to follow.
        inputs: of a pyramid whose stem and downsamplings were solved, the R2 of the stream before each stage.
    """

    rows: tuple[FitRow, ...]
    left_out: tuple[int, ...] = ()
    inputs: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Return a table with a line per layer."""
        lines = ["layer  teacher   tokens      R2  MLP R2  stream error  token error"]
        for row in self.rows:
            mlp = "-" if row.mlp_r2 is None else f"{row.mlp_r2:.4f}"
            lines.append(
                f"{row.layer:5d} {row.teacher_layer:8d} {row.tokens:8d} {row.r2:7.4f} {mlp:>7} {row.stream_error:13.4f}"
                f" {row.token_error:12.4f}"
            )
        if self.inputs:
            lines.append(f"R2 before each stage: {', '.join(f'{r2:.4f}' for r2 in self.inputs)}")
        if self.left_out:
            lines.append(f"left out: the teacher's tokens at {', '.join(map(str, self.left_out))}, not in the student")
        return "\n".join(lines)


class Saved:
    """A folder with a file per solved layer.

    Args:
        folder: made if need be.
        facts: arguments of the fit, which must be those of the files.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, dict(facts)

    def read(self, layer: int, student: nn.Module) -> FitRow | None:
        """Put a solved layer into the student; None if it is not solved yet.

        Raises:
            ValueError: it was solved with other arguments, or for another student.
        """
        path = self._path(layer)
        if not path.exists():
            return None
        stored = torch.load(path, weights_only=True)
        if stored["facts"] != self.facts:
            raise ValueError(
                f"{path} was solved with {stored['facts']}, now asked for is {self.facts}: take another folder"
            )
        parameters = dict(student.named_parameters())
        for name, tensor in stored["weights"].items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise ValueError(f"{path} holds {name} {tuple(tensor.shape)}, which the student lacks: wrong folder?")
            with torch.no_grad():
                parameters[name].copy_(tensor)
        torch.clear_autocast_cache()  # see `write_readout`
        return FitRow(*stored["row"])

    def write(self, row: FitRow, readouts: list[nn.Linear], student: nn.Module) -> None:
        """Write a solved layer, whole or not at all."""
        ours = {id(parameter) for readout in readouts for parameter in readout.parameters()}
        weights = {name: p.detach().cpu() for name, p in student.named_parameters() if id(p) in ours}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(row.layer)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        torch.save({"facts": self.facts, "row": tuple(row), "weights": weights}, part)
        part.replace(path)

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer_{layer:04d}.pt"
