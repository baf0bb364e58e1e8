"""Teachers and students as named tensors: modules, state dicts, or files read one tensor at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATING_CODES = ("F16", "BF16", "F32", "F64")

Weights = nn.Module | Mapping[str, Tensor]


class LazyTensors(Mapping[str, Tensor]):
    """Named tensors in safetensors files, read when asked for and not kept.

    A file is mapped into memory only while one of its tensors is read, so that what was read earlier is released.

    Args:
        paths: files of one checkpoint, or the folder that holds them.

    Raises:
        ValueError: there is no file, one is damaged, or a name stands in two files.
        FileNotFoundError: a named file does not exist.
    """

    def __init__(self, *paths: str | Path) -> None:
        from safetensors import safe_open

        self._open = safe_open
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        files = [file for path in map(Path, paths) for file in _files(path)]
        if not files:
            raise ValueError(f"no safetensors file at {', '.join(map(str, paths)) or 'an empty list of paths'}")
        for path in files:
            for name, dtype, shape in _header(path):
                if name in self._paths:
                    raise ValueError(f"{name} stands both in {self._paths[name].name} and in {path.name}")
                self._paths[name], self._dtypes[name], self._shapes[name] = path, dtype, shape

    def __getitem__(self, name: str) -> Tensor:
        with self._open(self._paths[name], framework="pt") as opened:
            return opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """The file's code for the number format, such as BF16, without reading the tensor."""
        return self._dtypes[name]


def open_safetensors(*paths: str | Path) -> LazyTensors:
    """A teacher, or a Mamba for `ssm_from`, that is read from its files tensor by tensor.

    Args:
        paths: safetensors files of one checkpoint, or the folder that holds them.

    Raises:
        ValueError: there is no file, one is damaged, or a name stands in two files.
        FileNotFoundError: a named file does not exist.
    """
    return LazyTensors(*paths)


def named_tensors(weights: Weights) -> Mapping[str, Tensor]:
    """The tensors of a module or state dict by name, not copied."""
    if isinstance(weights, nn.Module):
        return dict(weights.state_dict(keep_vars=True))
    return weights


def shape_of(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a tensor, from the file header where there is one."""
    return weights.shape(name) if isinstance(weights, LazyTensors) else tuple(weights[name].shape)


def read(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A teacher tensor, outside any graph."""
    return weights[name].detach()


def check_source(name: str, weights: Mapping[str, Tensor]) -> None:
    """Raises TypeError or ValueError unless a teacher's tensor has plain floating numbers; a file's header suffices."""
    if isinstance(weights, LazyTensors):
        if weights.dtype(name) not in FLOATING_CODES:
            raise TypeError(_quantised(name, weights.dtype(name)))
        return
    tensor = weights[name]
    _refuse_sharded("teacher", name, tensor)
    if tensor.is_quantized or tensor.dtype not in FLOATING:
        raise TypeError(_quantised(name, str(tensor.dtype)))
    if tensor.is_meta:
        raise ValueError(f"teacher tensor {name} is on the meta device and has no values: load the teacher first")


def check_target(name: str, tensor: Tensor) -> None:
    """Raises TypeError or ValueError unless a student's tensor can be written in place."""
    _refuse_sharded("student", name, tensor)
    if tensor.is_meta:
        raise ValueError(
            f"student tensor {name} is on the meta device: materialise first, student.to_empty(device=...), then"
            " initialise, then subclone"
        )
    if tensor.is_quantized or tensor.dtype not in FLOATING:
        raise TypeError(f"student tensor {name} is {tensor.dtype}: expected float16, bfloat16, float32 or float64")


def _refuse_sharded(side: str, name: str, tensor: Tensor) -> None:
    if torch.distributed.is_available():
        from torch.distributed.tensor import DTensor

        if isinstance(tensor, DTensor):
            raise TypeError(
                f"{side} tensor {name} is sharded (DTensor): neurons are chosen from whole tensors; subclone before"
                " sharding the model, or use a gathered state dict"
            )


def _quantised(name: str, dtype: str) -> str:
    return (
        f"teacher tensor {name} is quantised ({dtype}): expected float16, bfloat16, float32 or float64; load the"
        " teacher without quantisation"
    )


def _header(path: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, format code and shape of every tensor in a file."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as opened:
            slices = [(name, opened.get_slice(name)) for name in opened.keys()]
            return [(name, header.get_dtype(), tuple(header.get_shape())) for name, header in slices]
    except SafetensorError as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
