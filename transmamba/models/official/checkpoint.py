"""Reading a checkpoint: from a file, out of its wrappers, without its prefixes."""

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
        ValueError: a file is neither `.safetensors` nor one of torch's, or two names differ by their prefix only.
        TypeError: something in the state dict is no tensor.
    """
    content: Mapping[str, Any] = load_file(Path(source)) if isinstance(source, (str, Path)) else source
    while wrapper := next((w for w in WRAPPERS if isinstance(content.get(w), Mapping)), None):
        content = content[wrapper]
    state: State = {}
    for name, value in content.items():
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

    Raises:
        ValueError: the suffix is unknown.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file as load_safetensors

        return load_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".tar"):
        with torch.serialization.safe_globals([Namespace]):  # training scripts save their arguments, a plain record
            return torch.load(path, map_location="cpu", weights_only=True)
    raise ValueError(f"cannot read {path.name}: expected a .safetensors file, or .pth, .pt, .bin, .ckpt, .tar")
