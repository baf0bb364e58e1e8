"""Models that are saved together with how to build them, in a folder or on the Hugging Face hub."""

import inspect
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from transmamba._checkpoint import load_file, load_json
from transmamba._typing import refuse_script

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Pretrained:
    """Mixin for an `nn.Module` that remembers the arguments it was built with.

    A folder holds `config.json` and `model.safetensors`, or `pytorch_model.bin` where safetensors is not installed.
    The hub needs `huggingface_hub` (the extra `hub`).

    Attributes:
        recipe: what is called to build the model again, and with which arguments; None if they cannot be written.
    """

    recipe: dict[str, Any] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments down."""
        model = super().__new__(cls)
        # copying and unpickling give no arguments, and bring the recipe along
        given = inspect.signature(cls.__init__).bind_partial(model, *args, **kwargs).arguments
        given.pop("self")
        recipe = {"build": cls.__name__, "arguments": given}
        model.__dict__["recipe"] = recipe if _writable(recipe) else None
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model into a folder, which is made if need be.

        Raises:
            ValueError: the arguments it was built with cannot be written, for they are modules or functions.
        """
        folder = Path(folder)
        if not _writable(self.recipe):
            raise ValueError(
                f"this {type(self).__name__} was built with modules or functions, which cannot be written: build it "
                "with one of the functions of transmamba.models"
            )
        folder.mkdir(parents=True, exist_ok=True)
        state = _untied(cast(nn.Module, self))
        if find_spec("safetensors"):
            from safetensors.torch import save_file

            save_file(state, folder / WEIGHTS[0])
        else:
            torch.save(state, folder / WEIGHTS[1])
        (folder / CONFIG).write_text(json.dumps(self.recipe, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """The model of a folder, or of a repository `owner/name` on the hub, in evaluation mode.

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
        state = dict(load_file(weights))
        with torch.device("meta"):
            model = _rebuild(cls, load_json(folder / CONFIG), state)
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


def _writable(recipe: dict[str, Any] | None) -> bool:
    try:
        json.dumps(recipe)
    except TypeError:
        return False
    return recipe is not None


def assign(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the tensors of `state` in place of those of `model`; what was one parameter stays one.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    tied = _tied_names(model)
    model.load_state_dict({**{name: state[first] for name, first in tied.items()}, **state}, assign=True)
    for name, first in tied.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(first))


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are another one -> the name of that one."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return tied


def _untied(model: nn.Module) -> dict[str, Tensor]:
    tied = _tied_names(model)
    return {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}


def _rebuild(cls: type, recipe: Mapping[str, Any], state: dict[str, Tensor]) -> Any:
    """Call what `recipe` names: the class itself, a public builder of `transmamba.models`, or an official family.

    Raises:
        ValueError: the recipe is not one that `save_pretrained` writes.
    """
    from transmamba import models
    from transmamba.models.official import FAMILIES
    from transmamba.models.official.load import rebuild

    if "family" in recipe:
        family, config = recipe["family"], recipe.get("config")
        if not isinstance(family, str) or family not in FAMILIES or not isinstance(config, Mapping):
            raise ValueError(f"{CONFIG} names no official family and its config: {_shortened(recipe)}")
        return rebuild(FAMILIES[family], config, state)
    name, arguments = recipe.get("build"), recipe.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ValueError(f"{CONFIG} does not say what to build with which arguments: {_shortened(recipe)}")
    maker = cls if name == cls.__name__ else None if name.startswith("_") else getattr(models, name, None)
    # with a path among its arguments a builder would read what the folder's author names
    reads = name == "from_official" or (name == "from_hf" and [type(v) for v in arguments.values()] != [dict])
    if not callable(maker) or reads:
        raise ValueError(f"cannot build {name!r}: it is neither {cls.__name__} nor a name of transmamba.models")
    return maker(**{name: tuple(v) if isinstance(v, list) else v for name, v in arguments.items()})


def _shortened(recipe: Mapping[str, Any]) -> str:
    return repr(recipe)[:200]


def _download(repository: str, revision: str | None) -> Path:
    return Path(_hub().snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, *WEIGHTS]))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError("the hub needs huggingface_hub: pip install transmamba[hub]") from None
    return huggingface_hub
