"""Models that are saved together with how to build them, in a folder or on the Hugging Face hub."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from transmamba._checkpoint import CONFIG, load_file, load_json
from transmamba._typing import refuse_script
from transmamba.models.builders import Recorded
from transmamba.models.config import rebuild

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Pretrained(Recorded):
    """Mixin for an `nn.Module` that is saved together with the call that built it.

    A folder holds `config.json` and `model.safetensors`, or `pytorch_model.bin` where safetensors is not installed.
    The hub needs `huggingface_hub` (the extra `hub`).
    """

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model into a folder, which is made if need be.

        Raises:
            ValueError: an argument that the model was built with is neither plain data nor a registered builder.
        """
        folder = Path(folder)
        if self.build_config is None:
            raise ValueError(f"cannot write the {CONFIG} of this {type(self).__name__}: {self._unwritten}")
        config = json.dumps(self.build_config, indent=1) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        state = _untied(cast(nn.Module, self))
        if find_spec("safetensors"):
            from safetensors.torch import save_file

            # accelerate and transformers ask each file for the framework that wrote it
            save_file(state, folder / WEIGHTS[0], {"format": "pt"})
        else:
            torch.save(state, folder / WEIGHTS[1])
        (folder / CONFIG).write_text(config)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """Load the model of a folder, or of a repository `owner/name` on the hub, in evaluation mode.

        Args:
            source: folder or repository.
            revision: branch, tag or commit of the repository.

        Raises:
            ValueError: the folder has no weights, holds a model of another class, or a file in it is damaged.
            TypeError: an argument in `config.json` has another type.
            ImportError: `source` is no folder and huggingface_hub is not installed.
        """
        if Path(source).is_file():
            raise ValueError(f"{source} is a file: expected the folder that save_pretrained wrote")
        folder = Path(source) if Path(source).is_dir() else _download(str(source), revision)
        weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
        if weights is None or not (folder / CONFIG).exists():
            raise ValueError(f"{folder} holds no model: expected {CONFIG} and {' or '.join(WEIGHTS)}")
        # copies: tensors of a file start anywhere in a cache line, and change with the file
        state = {name: value.clone() for name, value in load_file(weights).items()}
        with torch.device("meta"):
            model = rebuild(load_json(folder / CONFIG), state, cls)
        if not isinstance(model, cls):
            raise ValueError(f"{folder} holds a {type(model).__name__}, not a {cls.__name__}")
        try:
            assign(cast(nn.Module, model), state)
        except RuntimeError as error:
            raise ValueError(f"the weights in {folder} do not fit {CONFIG}: {error}") from error
        return cast(Self, cast(nn.Module, model).eval())

    def push_to_hub(self, repository: str, *, private: bool = False, message: str = "Upload model") -> None:
        """Write the model into a repository `owner/name` on the hub, which is made if need be.

        Raises:
            ImportError: huggingface_hub is not installed.
        """
        from tempfile import TemporaryDirectory

        hub = _hub()
        hub.create_repo(repository, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)

    def __prepare_scriptable__(self) -> None:
        """Refuse torch.jit.script, which calls it first."""
        refuse_script(type(self).__name__)


def assign(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the tensors of `state` in place of those of `model`; shared parameters stay shared.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    tied = _tied_names(model)
    model.load_state_dict({**{name: state[first] for name, first in tied.items()}, **state}, assign=True)
    for name, first in tied.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(first))


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Map the names of parameters that are another parameter to the name of that one."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return tied


def _untied(model: nn.Module) -> dict[str, Tensor]:
    tied = _tied_names(model)
    return {name: value.contiguous() for name, value in weights_of(model).items() if name not in tied}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model, in which every entry has to be a tensor.

    Raises:
        TypeError: one is not, as in a quantised model.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} is not a tensor but a {type(value).__name__}: the layers of a quantised model have no weights "
                "to write; write the model before you quantise it"
            )
    return state


def _download(repository: str, revision: str | None) -> Path:
    return Path(_hub().snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, *WEIGHTS]))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError("the hub needs huggingface_hub: pip install transmamba[hub]") from None
    return huggingface_hub
