"""Public checkpoints of the original implementations: same names in, same numbers out, same names back."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from transmamba._checkpoint import State, read_checkpoint
from transmamba._typing import check_choice
from transmamba.models.builders import Recorded, record
from transmamba.models.config import OFFICIAL, write_family
from transmamba.models.official.family import Family
from transmamba.models.official.load import build_and_load, rebuild, write_official
from transmamba.models.official.mamba import MAMBA_FAMILIES
from transmamba.models.official.plain_mamba import PLAIN_MAMBA
from transmamba.models.official.video_mamba import VIDEO_MAMBA, VIDEO_TEXT_MAMBA
from transmamba.models.official.vim import VIM
from transmamba.models.official.vmamba import VMAMBA

FAMILIES: dict[str, Family] = {
    "vim": VIM,
    "plainmamba": PLAIN_MAMBA,
    "videomamba": VIDEO_MAMBA,
    "videomamba_text": VIDEO_TEXT_MAMBA,
    "vmamba": VMAMBA,
    **MAMBA_FAMILIES,
}


def from_official(
    family: str,
    config: Mapping[str, Any],
    state_dict: Mapping[str, Any] | str | Path,
    *,
    img_size: int | tuple[int, int] | None = None,
    num_frames: int | None = None,
    num_classes: int | None = None,
) -> nn.Module:
    """Build our model with the weights of an official one.

    Args:
        family: one of `FAMILIES`.
        config: the official constructor arguments by their official names. A checkpoint of another square image size,
            number of frames or number of classes is adapted, as far as its tensors show it; a new head is logged.
        state_dict: the official state dict, as it is or in the wrappers and with the prefixes training scripts add, or
            the path of a file with it. Of `.pth` files tensors and plain containers are read only.
        img_size: an image size other than that of `config`; position tables are resized.
        num_frames: another number of frames; an image model becomes a video model.
        num_classes: another number of classes; the head is initialised again.

    Raises:
        ValueError: the family is unknown, an argument is not understood, names are missing or left over, shapes are
            wrong (all are listed), or the family cannot be changed in that way.
        TypeError: something in the state dict is not a tensor.
    """
    check_choice("family", family, FAMILIES)
    changes = {"img_size": img_size, "num_frames": num_frames, "num_classes": num_classes}
    changes = {name: value for name, value in changes.items() if value is not None}
    model = build_and_load(FAMILIES[family], config, read_checkpoint(state_dict), changes)
    return _recorded(model, family, {**config, **changes})


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of `model` as the official code writes it, bit for bit the one that `from_official` read.

    Raises:
        TypeError: no family has models of that class.
    """
    for family in FAMILIES.values():
        if type(model) is family.model:
            return write_official(family, model)
    known = ", ".join(family.model.__name__ for family in FAMILIES.values())
    raise TypeError(f"no official names are known for a {type(model).__name__}: expected one of {known}")


def _recorded(model: nn.Module, family: str, config: Mapping[str, Any]) -> nn.Module:
    if isinstance(model, Recorded):
        record(model, lambda: write_family(family, config))
    return model


def _rebuild(family: str, config: Mapping[str, Any], state: State) -> nn.Module:
    """Build the empty model of a saved configuration."""
    return _recorded(rebuild(FAMILIES[family], config, state), family, config)


OFFICIAL.update({name: partial(_rebuild, name) for name in FAMILIES})
