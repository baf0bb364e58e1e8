"""Reading a checkpoint: from a file, out of its wrappers, without its prefixes."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transmamba.models.official.family import State

WRAPPERS = ("state_dict", "model", "module", "model_ema")
PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.")


def read_checkpoint(source: Mapping[str, Any] | str | Path) -> State:
    """The tensors of a checkpoint by their names without prefixes; averaged copies (`ema_...`) are left out.

    Raises:
        ValueError: a file cannot be read (see `load_file`), or two names differ by their prefix only.
        FileNotFoundError: there is no such file.
        TypeError: `source` is neither a path nor a mapping, or something in the state dict is no tensor.
    """
    content: Any = load_file(Path(source)) if isinstance(source, (str, Path)) else source
    if not isinstance(content, Mapping):
        raise TypeError(f"expected a state dict or the path of one, got a {type(content).__name__}")
    while wrapper := next((w for w in WRAPPERS if isinstance(content.get(w), Mapping)), None):
        content = content[wrapper]
    state: State = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise TypeError(f"a name in the state dict is no text but {name!r}")
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} in the state dict is no tensor but {type(value).__name__}")
        short = strip_prefixes(name)
        if short.startswith("ema_"):
            continue
        if short in state:
            raise ValueError(f"{name} and another name in the state dict are both {short} without their prefix")
        state[short] = value
    return state


def strip_prefixes(name: str) -> str:
    """The name without what wrappers put in front of it."""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def load_file(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint file; of torch's own files tensors and plain containers only.

    Links are followed. Numbers are not looked at: NaN comes through.

    Raises:
        ValueError: the suffix is unknown, `path` is a folder, or its content is no checkpoint, damaged, or a pickle
            that would run code, which it does not get to do.
        FileNotFoundError: there is no such file.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"):
        raise ValueError(f"cannot read {path.name}: expected a .safetensors file, or .pth, .pt, .bin, .ckpt, .tar")
    if path.is_dir():
        raise ValueError(f"cannot read {path}: it is a folder, expected a file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        content = _parse(path)
    except OSError:
        raise
    except Exception as error:  # torch and safetensors say in many ways that bytes make no sense
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"cannot read {path}: expected names and tensors, it holds a {type(content).__name__}")
    return content


def _parse(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file as load_safetensors

        return load_safetensors(path)
    with torch.serialization.safe_globals([Namespace]):  # training scripts save their arguments, a plain record
        return torch.load(path, map_location="cpu", weights_only=True)


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is no JSON, or no object.
        FileNotFoundError: there is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"cannot read {path}: expected an object, it holds a {type(content).__name__}")
    return content
