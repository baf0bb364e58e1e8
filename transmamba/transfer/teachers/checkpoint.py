"""A teacher as a family reads it: stored tensors by name, and the facts of its configuration."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from transmamba._checkpoint import Weights, named_tensors
from transmamba.transfer.teachers.modules import describe_module

# buffers that hold no weight: the numbers 0, 1, 2, ..., and rotary frequencies
BUFFERS = r"(.*\.)?(position_ids|(original_)?inv_freq)"


class Config:
    """The configuration of a teacher, and a record of the facts that it did not state.

    Args:
        values: keys of the family's own configuration; None if there is none.
        defaults: values of the configuration class where a config.json is silent; an explicit null counts as said.
    """

    def __init__(self, values: Mapping[str, Any] | None, defaults: Mapping[str, Any] | None = None) -> None:
        self.values: Mapping[str, Any] = values or {}
        self.defaults: Mapping[str, Any] = defaults or {}
        self.known = bool(values)
        self.unknown: list[str] = []

    def __call__(self, *keys: str, default: Any = None, fact: str | None = None) -> Any:
        """Return the first of `keys` that is set; else `default`.

        Args:
            keys: names under which versions of a configuration hold one value.
            default: the configuration class's own default.
            fact: field of `Architecture` that this settles. It counts as unknown if there is no configuration.
        """
        for key in keys:
            if self.values.get(key) is not None:
                return self.values[key]
        null = any(key in self.values for key in keys)
        if self.known and not null:
            default = next((self.defaults[key] for key in keys if key in self.defaults), default)
        if fact is not None and not (self.known and (null or default is not None)):
            self.unknown.append(fact)
        return default

    @property
    def model_type(self) -> str | None:
        """The key by which transformers' models name their kind."""
        return self.values.get("model_type")


class Checkpoint:
    """Stored tensors under the names of a family.

    Args:
        weights: stored tensors.
        config: the teacher's configuration.
        prefix: prefix of the base model's names, such as "vit.". Names without it stay as they are; where
            the base model has a tensor of the same name, "../" is put in front.
        older: (pattern, replacement) pairs that bring names of older versions to today's.
        composite: the model has other parts beside the one under `prefix`, as CLIP and LLaVA have.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: Config,
        prefix: str = "",
        older: Iterable[tuple[str, str]] = (),
        composite: bool = False,
    ) -> None:
        self.weights, self.config, self.prefix, self._composite = weights, config, prefix, composite
        self.stored: dict[str, str] = {}
        # a head may have a norm of the same name as the base model: names with the prefix go first
        for name in sorted(weights, key=lambda name: not name.startswith(prefix)):
            known = name.removeprefix(prefix)
            for pattern, today in older:
                known = re.sub(pattern, today, known)
            self.stored[f"../{known}" if known in self.stored else known] = name

    def is_outside(self, name: str) -> bool:
        """Check whether a name belongs to another part of a composite model."""
        return self._composite and not self.stored[name].startswith(self.prefix)

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor by its present name, from the header of a file where there is one.

        Raises:
            ValueError: there is no such tensor.
        """
        if name not in self.stored:
            raise ValueError(f"no tensor {name}")
        weights, stored = self.weights, self.stored[name]
        read = getattr(weights, "shape", None)
        return tuple(read(stored)) if read is not None else tuple(weights[stored].shape)

    def depth(self, pattern: str) -> int:
        """Return the number of layers, counted by a name with `{i}`.

        Raises:
            ValueError: there is none, or the layers are not numbered from 0 without a gap.
        """
        compiled = re.compile(re.escape(pattern).replace(r"\{i\}", r"(\d+)"))
        layers = {int(hit[1]) for hit in map(compiled.fullmatch, self.stored) if hit}
        if layers != set(range(len(layers))) or not layers:
            raise ValueError(f"no layers {pattern} numbered from 0 on, found {sorted(layers) or 'none'}")
        return len(layers)


def unwrap(teacher: Weights) -> Weights:
    """Take a module out of torch.compile's and DistributedDataParallel's wrappers; return anything else unchanged."""
    while isinstance(teacher, nn.Module):
        inner = getattr(teacher, "_orig_mod", None)
        if inner is None and type(teacher).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = teacher.module
        if not isinstance(inner, nn.Module):
            return teacher
        teacher = inner
    return teacher


def read_teacher(teacher: Weights, config: Any = None) -> tuple[Mapping[str, Tensor], Config]:
    """Return the tensors and the configuration of a module, a state dict or files."""
    teacher = unwrap(teacher)
    if config is None and isinstance(teacher, nn.Module):
        # ours say more by their modules than by the config that they have for peft
        config = describe_module(teacher)
        config = getattr(teacher, "config", None) if config is None else config
    elif config is None:
        config = getattr(teacher, "config", None)
    if config is not None and not isinstance(config, Mapping):
        if not callable(getattr(config, "to_dict", None)):
            raise TypeError(
                f"config is a {type(config).__name__}: expected the dictionary of a config.json, or a transformers"
                " config"
            )
        config = config.to_dict()
    return named_tensors(teacher), Config(config)
