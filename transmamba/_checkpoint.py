"""Read any checkpoint: whole files, out of their wrappers, or tensor by tensor."""

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
Weights = nn.Module | Mapping[str, Tensor]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATING_CODES = ("F16", "BF16", "F32", "F64")  # the same formats in the header of a safetensors file
NUMBERS = (*FLOATING, torch.complex64, torch.complex128)
NUMBER_CODES = (*FLOATING_CODES, "C64")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
WRAPPERS = ("state_dict", "model", "module", "model_ema")
PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.")
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


class LazyTensors(Mapping[str, Tensor]):
    """Named tensors in safetensors files; each is read on access and not kept.

    A file is mapped into memory only while one of its tensors is read, so that the memory of earlier ones is released.
    Of a folder with `model.safetensors.index.json` the files that the index names are read, of any other folder all
    safetensors files.

    Args:
        paths: files of one checkpoint, or the folder that holds them.

    Attributes:
        config: content of the folder's `config.json`; None without such a file.

    Raises:
        ValueError: there is no file, one is damaged, a tensor name is in two files, or two folders have a config.json.
        FileNotFoundError: a named file does not exist.
    """

    def __init__(self, *paths: str | Path) -> None:
        from safetensors import safe_open

        self._open = safe_open
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        given = [Path(path) for path in paths]
        files = [file for path in given for file in _files(path)]
        if not files:
            raise ValueError(f"no safetensors file at {', '.join(map(str, paths)) or 'an empty list of paths'}")
        for path in files:
            for name, dtype, shape in _header(path):
                if name in self._paths:
                    raise ValueError(f"{name} stands both in {self._paths[name].name} and in {path.name}")
                self._paths[name], self._dtypes[name], self._shapes[name] = path, dtype, shape
        configs = [path / CONFIG for path in given if (path / CONFIG).is_file()]
        if len(configs) > 1:
            raise ValueError(f"expected the config.json of one checkpoint, got {configs[0]} and {configs[1]}")
        self.config = load_json(configs[0]) if configs else None

    def __getitem__(self, name: str) -> Tensor:
        with self._open(self._paths[name], framework="pt") as opened:
            return opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """Return the header's code for the number format, such as BF16, without reading the tensor."""
        return self._dtypes[name]


def open_safetensors(*paths: str | Path) -> LazyTensors:
    """Open a teacher, or a Mamba for `ssm_from`, whose files are then read tensor by tensor.

    Args:
        paths: safetensors files of one checkpoint, or the folder that holds them. The content of a folder's
            `config.json` becomes the attribute `config`.

    Raises:
        ValueError: there is no file, one is damaged, a tensor name is in two files, or two folders have a config.json.
        FileNotFoundError: a named file does not exist.
    """
    return LazyTensors(*paths)


def named_tensors(weights: Weights) -> Mapping[str, Tensor]:
    """Return the tensors of a module or state dict by name, not copied.

    Raises:
        TypeError: an entry is something else, such as the packed parameters of a quantised layer.
    """
    if not isinstance(weights, nn.Module):
        return weights
    state = dict(weights.state_dict(keep_vars=True))
    for name, value in state.items():
        if not isinstance(value, Tensor) and not name.endswith("_extra_state"):
            raise TypeError(
                f"{name} of the {type(weights).__name__} is not a tensor but {type(value).__name__}: quantised layers"
                " pack their weights, so load or build the model without quantisation"
            )
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def shape_of(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Return the shape of a tensor, from the file header where there is one."""
    return weights.shape(name) if isinstance(weights, LazyTensors) else tuple(weights[name].shape)


def read(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor, detached from any graph."""
    return weights[name].detach()


def read_checkpoint(source: Mapping[str, Any] | str | Path) -> State:
    """Read the tensors of a checkpoint under their names without prefixes; averaged copies (`ema_...`) are left out.

    Raises:
        ValueError: a file cannot be read (see `load_file`), or two names differ by their prefix only.
        FileNotFoundError: the file does not exist.
        TypeError: `source` is neither a path nor a mapping, or the state dict holds something other than tensors.
    """
    content: Any = load_file(Path(source)) if isinstance(source, (str, Path)) else source
    if not isinstance(content, Mapping):
        raise TypeError(f"expected a state dict or the path of one, got a {type(content).__name__}")
    while wrapper := next((w for w in WRAPPERS if isinstance(content.get(w), Mapping)), None):
        content = content[wrapper]
    state: State = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise TypeError(f"state dict keys must be strings, got {type(name).__name__}: {name!r}")
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} in the state dict is not a tensor but {type(value).__name__}")
        short = strip_prefixes(name)
        if short.startswith("ema_"):
            continue
        if short in state:
            raise ValueError(f"{name} and another name in the state dict are both {short} without their prefix")
        state[short] = value
    return state


def strip_prefixes(name: str) -> str:
    """Remove the prefixes that wrappers put in front of a name."""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def load_file(path: Path) -> Mapping[str, Any]:
    """Load a checkpoint file; from torch's own files, tensors and plain containers only.

    Links are followed. Values are not checked: NaN is returned as it is.

    Raises:
        ValueError: the suffix is unknown, `path` is a folder, or its content is damaged, not a checkpoint, or a pickle
            that would run code; the code does not run.
        FileNotFoundError: the file does not exist.
    """
    if path.suffix not in SUFFIXES:
        first, *others = SUFFIXES
        raise ValueError(f"cannot read {path.name}: expected a {first} file, or {', '.join(others)}")
    if path.is_dir():
        raise ValueError(f"cannot read {path}: it is a folder, expected a file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        content = _parse(path)
    except OSError:
        raise
    except Exception as error:  # torch and safetensors raise many types for bytes that are not theirs
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"cannot read {path}: expected names and tensors, it holds a {type(content).__name__}")
    return content


def load_json(path: Path) -> dict[str, Any]:
    """Load the object in a JSON file.

    Raises:
        ValueError: the content is not JSON, or not an object.
        FileNotFoundError: the file does not exist.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"cannot read {path}: expected an object, it holds a {type(content).__name__}")
    return content


def indexed_files(folder: Path) -> list[Path]:
    """List the files that a folder's `model.safetensors.index.json` names; none without an index.

    Raises:
        ValueError: the index is damaged, or names files outside the folder.
    """
    index = folder / INDEX
    if not index.exists():
        return []
    parts = load_json(index).get("weight_map")
    if not isinstance(parts, Mapping) or not all(isinstance(n, str) and Path(n).name == n for n in parts.values()):
        raise ValueError(f"cannot read {index}: expected weight_map, from names to files of the same folder")
    return [folder / name for name in sorted(set(parts.values()))]


def _files(path: Path) -> list[Path]:
    return (indexed_files(path) or sorted(path.glob("*.safetensors"))) if path.is_dir() else [path]


def _header(path: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """Read name, format code and shape of every tensor in a file."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as opened:
            slices = [(name, opened.get_slice(name)) for name in opened.keys()]
            return [(name, header.get_dtype(), tuple(header.get_shape())) for name, header in slices]
    except SafetensorError as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _parse(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file as load_safetensors

        return load_safetensors(path)
    with torch.serialization.safe_globals([Namespace]):  # training scripts save their arguments, a plain record
        return torch.load(path, map_location="cpu", weights_only=True)
