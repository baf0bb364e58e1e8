"""Teachers: which Transformer a checkpoint holds, and its tensors in one canonical form.

A family is one file here, or several in one: its stored names, the steps to canonical tensors, the tensors that it
ignores, and the properties that it cannot keep. Files that define `FAMILIES` or `REFUSED` are found automatically;
docs/adding_a_teacher.md has an example.
"""

import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from transmamba._checkpoint import Weights
from transmamba._typing import check_choice, typed
from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import Checkpoint, Config, read_teacher
from transmamba.transfer.teachers.family import Canonical, Family
from transmamba.transfer.teachers.terms import Term, affine, optional, src
from transmamba.transfer.teachers.translated import Translated

__all__ = [
    "Architecture", "Canonical", "Checkpoint", "Config", "Family", "Term", "Translated", "affine", "families",
    "optional", "refused", "src", "translate", "translate_for",
]  # fmt: skip


@typed
def translate(
    teacher: Weights, family: str | Family | None = None, config: Any = None, *, kind: str | None = None
) -> Translated:
    """Translate a Transformer into canonical form, exactly or not at all.

    A transformers model is recognised by `config.model_type`, timm's Vision Transformers by their attributes, files by
    the config.json beside them, and a bare state dict by its names, if they are those of one family alone.

    Args:
        teacher: a module, a state dict, or `open_safetensors(...)`. A translated teacher is returned as it is.
        family: name of a family in `families()`, or a `Family` of your own; needed where two families fit.
        config: the configuration of a bare state dict: the dictionary of its config.json, or a transformers config.
        kind: "image", "audio", "text", "encoder" or "decoder" chooses a part of a model that has several, such as CLIP.

    Raises:
        ValueError: no family fits, two do, a tensor is missing or left over, or the teacher has a part that no
            canonical Transformer has.
        TypeError: the teacher is quantised.

    Example:
        >>> import torch
        >>> from transmamba.models import ViT
        >>> teacher = translate(ViT(img_size=8, patch_size=4, dim=12, depth=1, heads=3, num_classes=5))
        >>> teacher.family, teacher.architecture.heads, teacher["blocks.0.attn.q.weight"].shape
        ('transmamba_transformer', 3, torch.Size([12, 12]))
    """
    translated = translate_for(kind, teacher, family, config)
    if kind is not None and translated.architecture.kind not in _kinds(kind):
        raise ValueError(
            f"the teacher has no part of kind {kind!r} that a family knows: {translated.family} is of kind"
            f" {translated.architecture.kind!r}"
        )
    return translated


def translate_for(
    kind: str | None, teacher: Weights, family: str | Family | None = None, config: Any = None
) -> Translated:
    """Translate, and of a teacher with several parts prefer one of a kind; for the arguments see `translate`."""
    if isinstance(teacher, Translated):
        return teacher
    weights, values = read_teacher(teacher, config)
    if isinstance(family, str):
        check_choice("family", family, families())
    if family is not None:
        chosen_family = families()[family] if isinstance(family, str) else family
        _refuse_other_type(chosen_family, values)
        return _read(chosen_family, weights, values)
    chosen, parts = _by_config(values)
    if len(chosen) > 1:
        # a composite configuration names parts of which a model with a head for one of them has no tensors
        chosen = [one for one in chosen if _has_marker(one, weights)] or chosen
    if kind is not None and len(chosen) > 1:
        chosen = [one for one in chosen if _kind_fits(one, kind, weights, parts)] or chosen
    if len(chosen) == 1:
        return _read(chosen[0], weights, values)
    if chosen:
        raise ValueError(
            f"the teacher ({values.model_type}) has several parts: choose one by family="
            f"{' or '.join(repr(one.name) for one in chosen)}"
        )
    return _by_names(weights, values, kind)


def _kinds(kind: str) -> tuple[str, ...]:
    return ("encoder", "decoder") if kind == "text" else (kind,)


def _refuse_other_type(family: Family, config: Config) -> None:
    """Raise ValueError if the configuration belongs to another family than `family`; an unknown model type passes."""
    kind, parts = config.model_type, _parts(config)
    if kind is None or kind in family.model_types or set(parts) & set(family.model_types):
        return
    owner = next((one.name for one in families().values() if kind in one.model_types), None)
    if owner is not None and family.model_types:
        raise ValueError(
            f"the teacher's config is of type {kind!r}, family {owner!r}, not {family.name!r}: leave family out"
        )


@functools.cache
def families() -> Mapping[str, Family]:
    """Return all families by name."""
    found = [family for module in _modules() for family in getattr(module, "FAMILIES", ())]
    return {family.name: family for family in found}


@functools.cache
def refused() -> Mapping[str, str]:
    """Map refused values of `config.model_type` to the reason."""
    return {kind: reason for module in _modules() for kind, reason in getattr(module, "REFUSED", {}).items()}


@functools.cache
def _modules() -> tuple[Any, ...]:
    return tuple(importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))


def _parts(config: Config) -> dict[str, Mapping[str, Any]]:
    """Map model types to the configurations of a composite model's parts."""
    found = (value for value in config.values.values() if isinstance(value, Mapping))
    return {part["model_type"]: part for part in found if part.get("model_type")}


def _by_config(config: Config) -> tuple[list[Family], dict[str, Mapping[str, Any]]]:
    """Return the families of the model type, or those of the model's parts."""
    if config.model_type is None:
        return [], {}
    chosen = [family for family in families().values() if config.model_type in family.model_types]
    parts = _parts(config)
    reason = refused().get(config.model_type)
    if reason is not None and not chosen:
        raise ValueError(f"a teacher of type {config.model_type!r} is refused: {reason}")
    chosen = chosen or [family for family in families().values() if set(family.model_types) & set(parts)]
    if chosen:
        return chosen, parts
    reason = next((f"its part {kind!r} is refused: {refused()[kind]}" for kind in parts if kind in refused()), None)
    if reason is not None:
        raise ValueError(f"a teacher of type {config.model_type!r} is refused: {reason}")
    raise ValueError(
        f"no family knows teachers of type {config.model_type!r}: expected one of"
        f" {', '.join(sorted({kind for family in families().values() for kind in family.model_types}))}; write a Family"
        " for it (docs/adding_a_teacher.md), or give subclone a plan"
    )


def _kind_fits(family: Family, kind: str, weights: Mapping[str, Any], parts: Mapping[str, Any]) -> bool:
    config: Mapping[str, Any] = next((parts[name] for name in family.model_types if name in parts), {})
    try:
        return _read(family, weights, Config(config), composite=True).architecture.kind in _kinds(kind)
    except ValueError:
        return False


def _read(family: Family, weights: Mapping[str, Any], config: Config, composite: bool = False) -> Translated:
    """Translate by one family; of a composite model the part that the family covers."""
    parts = _parts(config)
    own = next((parts[name] for name in family.model_types if name in parts), None)
    if own is not None and config.model_type not in family.model_types:
        # whether the head is tied is decided by the whole model's flag, not by that of the part
        tied = {key: config.values[key] for key in ("tie_word_embeddings",) if key in config.values}
        config, composite = Config({**own, **tied}), True
    config = Config(config.values, family.defaults)
    checkpoint = Checkpoint(weights, config, _prefix(family, weights), family.older, composite)
    try:
        return Translated(family.name, checkpoint, family.read(checkpoint))
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(family.name) else f"{family.name}: {message}") from error


def _has_marker(family: Family, weights: Mapping[str, Any]) -> bool:
    markers = (family.marker, *family.older_markers)
    return any(re.search(rf"(^|\.){re.escape(marker)}$", name) for marker in markers for name in weights)


def _prefix(family: Family, weights: Mapping[str, Any]) -> str:
    """Return the prefix of a wrapping model, found by the family's marker.

    Raises:
        ValueError: no tensor has the name by which the family's models are known, or those of several parts have.
    """
    for marker in (family.marker, *family.older_markers):
        found = {name.removesuffix(marker) for name in weights if re.search(rf"(^|\.){re.escape(marker)}$", name)}
        if len(found) > 1:
            raise ValueError(
                f"{family.name}: {marker} stands at {' and '.join(sorted(found))}: give one part, such as a submodule"
            )
        if found:
            return found.pop()
    raise ValueError(f"{family.name}: the teacher has no tensor {family.marker}")


def _by_names(weights: Mapping[str, Any], config: Config, kind: str | None) -> Translated:
    """Find the one family whose tensors are those of the checkpoint."""
    fitting, refusals = [], {}
    for family in families().values():
        try:
            fitting.append(_read(family, weights, config))
        except ValueError as error:
            refusals[family.name] = str(error)
    if kind is not None and len(fitting) > 1:
        fitting = [one for one in fitting if one.architecture.kind in _kinds(kind)] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(repr(one.family) for one in fitting)
        raise ValueError(
            f"the names of the teacher's tensors are those of {names}: say which, family=..., or give its config"
        )
    nearest = [reason for reason in refusals.values() if "has no tensor" not in reason]
    listed = list(weights)
    if nearest:
        raise ValueError(f"no family fits the teacher's tensors. {'; '.join(nearest[:4])}")
    raise ValueError(
        f"no family knows these tensors: {', '.join(listed[:4])}, ... ({len(listed)} in all). Known families:"
        f" {', '.join(families())}. Write a Family for it (docs/adding_a_teacher.md), or give subclone a plan"
    )
