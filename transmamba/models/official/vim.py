"""Checkpoints of hustvl/Vim."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.official.adapting import fresh_head, insert_row, told_classes, told_side
from transmamba.models.official.bidirectional import official_name
from transmamba.models.official.family import Family, read_config
from transmamba.models.vim import Vim
from transmamba.nn.position import resize_position

_DEFAULTS = {
    "img_size": 224,
    "patch_size": 16,
    "stride": 16,
    "depth": 24,
    "embed_dim": 192,
    "d_state": 16,
    "channels": 3,
    "num_classes": 1000,
    "drop_path_rate": 0.1,
    "residual_in_fp32": True,
}
# what every released model has
_FIXED = {
    "rms_norm": True,
    "norm_epsilon": 1e-5,
    "if_abs_pos_embed": True,
    "if_rope": False,
    "if_rope_residual": False,
    "if_bidirectional": False,
    "if_bimamba": False,
    "bimamba_type": "v2",
    "if_cls_token": True,
    "if_divide_out": True,
    "use_middle_cls_token": True,
    "use_double_cls_token": False,
    "init_layer_scale": None,
    "flip_img_sequences_ratio": -1.0,
    "drop_rate": 0.0,
}
# no influence on the numbers (with a class token nothing is pooled); `if_devide_out` is a slip of the official vim_base
_IGNORED = (
    "final_pool_type",
    "fused_add_norm",
    "initializer_cfg",
    "ssm_cfg",
    "ft_seq_len",
    "pt_hw_seq_len",
    "device",
    "dtype",
    "pretrained",
    "if_devide_out",
)


def build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The Vim of the official constructor arguments."""
    args = read_config(config, _DEFAULTS, _FIXED, _IGNORED)
    size = args["img_size"]
    return Vim(
        size if isinstance(size, int) else tuple(size),
        args["patch_size"],
        stride=args["stride"],
        in_chans=args["channels"],
        num_classes=args["num_classes"],
        dim=args["embed_dim"],
        depth=args["depth"],
        d_state=args["d_state"],
        drop_path=args["drop_path_rate"],
        float32_residual=args["residual_in_fp32"],
    )


def describe(model: nn.Module, state: State) -> dict[str, Any]:
    """Another number of classes, or a position table of another square image."""
    model = cast(Vim, model)
    told, embed = told_classes(model, state), model.patch_embed
    side = told_side(state.get("pos_embed"), 1, model.patches)
    return told if side is None else {**told, "img_size": (side - 1) * embed.stride + embed.patch_size}


def adapt(state: State, source: nn.Module, target: nn.Module) -> State:
    """Resize the position table around the class token's row, which is the middle one."""
    source, target = cast(Vim, source), cast(Vim, target)
    table, middle = state["pos_embed"], source.cls_position
    patches = torch.cat([table[:, :middle], table[:, middle + 1 :]], 1)
    patches = resize_position(patches, source.grid, target.grid)
    table = insert_row(patches, table[:, middle : middle + 1], target.cls_position)
    return fresh_head({**state, "pos_embed": table}, target)


VIM = Family(Vim, build, official_name, describe=describe, adapt=adapt)
