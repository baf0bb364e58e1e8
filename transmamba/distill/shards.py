"""Files of a feature store: safetensors, one row per key, mapped into memory."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHECKS = 4  # numbers per checksum


class Shards:
    """The files of a store, each opened when it is first read.

    Args:
        folder: where they are.
        rows: number of rows of all files together.
        size: rows per file.
        digest: mark of the store that a file has to bear.
        complete: all files have to be there.

    Attributes:
        missing: numbers of files that are not there, or not whole.

    Raises:
        ValueError: a file is missing or not whole although all have to be there.
    """

    def __init__(self, folder: Path, rows: int, size: int, digest: str, *, complete: bool = True) -> None:
        self.folder, self.size, self.digest = folder, size, digest
        count = -(-rows // size)
        self.missing = [number for number in range(count) if not self._is_whole(number)]
        self._opened: dict[int, dict[str, Tensor]] = {}
        if complete and self.missing:
            raise ValueError(
                f"{self.path(self.missing[0])} is missing or not whole ({len(self.missing)} of {count} files): call "
                "FeatureStore.write again, which goes on where it stopped"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out mapped files, which another process opens by itself."""
        return {**self.__dict__, "_opened": {}}

    def path(self, number: int) -> Path:
        """Return the path of a file."""
        return self.folder / f"shard_{number:05d}.safetensors"

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return copies of rows, by name."""
        found = [(self._tensors(row // self.size), row % self.size) for row in rows]
        return {name: torch.stack([tensors[name][row] for tensors, row in found]) for name in found[0][0]}

    def _tensors(self, number: int) -> dict[str, Tensor]:
        if number not in self._opened:
            with _safetensors().safe_open(self.path(number), framework="pt") as opened:
                self._opened[number] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return self._opened[number]

    def _is_whole(self, number: int) -> bool:
        safetensors = _safetensors()
        try:
            with safetensors.safe_open(self.path(number), framework="pt") as opened:
                return (opened.metadata() or {}).get("store") == self.digest
        except (FileNotFoundError, safetensors.SafetensorError):
            return False


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("a feature store needs safetensors: pip install safetensors") from None
    return safetensors


def write_shard(path: Path, pieces: Sequence[dict[str, Tensor]], digest: str) -> None:
    """Write the rows of several batches, whole or not at all.

    Raises:
        ValueError: batches have other tensors or shapes.
    """
    shapes = [{name: tensor.shape[1:] for name, tensor in piece.items()} for piece in pieces]
    for other in shapes[1:]:
        if other != shapes[0]:
            raise ValueError(f"one batch has tensors {shapes[0]}, another {other}: expected equal names and shapes")
    joined = {name: torch.cat([piece[name] for piece in pieces]).contiguous() for name in pieces[0]}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    _safetensors().torch.save_file(joined, part, {"store": digest})
    part.replace(path)


def round_to(x: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return a tensor in the format of the file, on the CPU.

    Raises:
        ValueError: a number is not finite, or too large for the format.
    """
    if not x.is_floating_point():
        raise ValueError(f"{name} has dtype {x.dtype}: expected a floating dtype")
    rounded = x.detach().cpu().to(dtype)
    if not bool(rounded.isfinite().all()):
        largest = float(x.abs().max())
        raise ValueError(
            f"{name} has a number that {dtype} cannot hold (largest size {largest:.3g}): expected finite ones, "
            f"up to {torch.finfo(dtype).max:.3g}; bfloat16 and float32 hold larger ones"
        )
    return rounded


def checksum(inputs: Tensor) -> Tensor:
    """Return some numbers per sample that distinguish one image from another, and from its flips and shifts.

    They are the sample's products with waves of irrational length, in float64, and its norm as their scale.
    """
    flat = inputs.detach().cpu().flatten(1).double()
    return torch.cat([flat @ _waves(flat.shape[1]), torch.linalg.vector_norm(flat, dim=1, keepdim=True)], 1)


@lru_cache(maxsize=4)
def _waves(length: int) -> Tensor:
    steps = torch.arange(1, length + 1, dtype=torch.float64)
    return torch.stack([torch.sin(steps * 2**0.5 * (k + 1)) for k in range(CHECKS - 1)], 1)
