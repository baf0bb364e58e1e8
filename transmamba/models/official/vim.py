"""Checkpoints of hustvl/Vim."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor, nn

from transmamba._checkpoint import State
from transmamba.models.official.family import Family, read_config
from transmamba.models.official.resize import fresh_head, infer_grid_side, infer_num_classes, move_rows
from transmamba.models.official.vim_parts import official_name, read_mixer, read_norm
from transmamba.models.vim import ClassTokens, Vim
from transmamba.models.vim_layers import Turns
from transmamba.nn.embed import image_sides
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
    "ssm_cfg": None,
    "drop_rate": 0.0,
    "drop_path_rate": 0.1,
    "norm_epsilon": 1e-5,
    "rms_norm": True,
    "residual_in_fp32": True,
    "final_pool_type": "none",
    "if_abs_pos_embed": True,
    "if_bimamba": False,
    "bimamba_type": "v2",
    "if_cls_token": True,
    "if_divide_out": True,
    "init_layer_scale": None,
    "use_double_cls_token": False,
    "use_middle_cls_token": True,
    "if_rope": False,
    "if_rope_residual": False,
    "pt_hw_seq_len": 14,
    "if_bidirectional": False,
}
_FIXED = {"flip_img_sequences_ratio": -1.0}
_REASONS = {
    "flip_img_sequences_ratio": "the official model then flips its tokens by a coin, in evaluation too: it has no one "
    "output for an image"
}
# no influence on the numbers; `if_devide_out` is a slip of the official vim_base, which falls into its **kwargs
_IGNORED = (
    "fused_add_norm",
    "initializer_cfg",
    "ft_seq_len",
    "device",
    "dtype",
    "pretrained",
    "if_devide_out",
)
_POOLING: dict[str, Literal["mean", "last", "max"]] = {"mean": "mean", "none": "last", "max": "max"}


def build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Build the Vim of the official constructor arguments.

    Raises:
        ValueError: an argument is not understood, or means no classifier.
    """
    args = read_config(config, _DEFAULTS, _FIXED, _IGNORED, _REASONS)
    tokens = _class_tokens(args)
    turns = _turns(args, tokens)
    pooling = args["final_pool_type"]
    if pooling not in _POOLING and tokens == "none":
        raise ValueError(f"final_pool_type={pooling!r} gives no logits of an image: expected mean, max or none")
    if pooling == "max" and tokens != "none":
        raise ValueError("final_pool_type='max' takes the largest logit of a class token: expected mean or none")
    kind = "v1" if args["if_bimamba"] else args["bimamba_type"]
    average, gamma = args["if_divide_out"], args["init_layer_scale"]
    return Vim(
        image_sides(args["img_size"]),
        args["patch_size"],
        stride=args["stride"],
        in_chans=args["channels"],
        num_classes=args["num_classes"],
        dim=args["embed_dim"],
        depth=args["depth"],
        mixer=read_mixer(args["ssm_cfg"], kind, average=average, gamma=gamma, d_state=args["d_state"]),
        norm=read_norm(args["rms_norm"], args["norm_epsilon"]),
        class_tokens=tokens,
        pooling=_POOLING.get(pooling, "mean"),
        positions=args["if_abs_pos_embed"],
        dropout=args["drop_rate"],
        drop_path=args["drop_path_rate"],
        float32_residual=args["residual_in_fp32"],
        turns=turns,
        turned_grid=args["pt_hw_seq_len"],
        paired=_paired(args),
    )


def _paired(args: Mapping[str, Any]) -> bool:
    if args["if_bidirectional"] and args["depth"] % 2:
        raise ValueError(
            f"if_bidirectional=True, depth={args['depth']}: expected an even depth, because the official model takes "
            "two layers at a time and never runs, nor trains, the last of an odd number"
        )
    return args["if_bidirectional"]


def _turns(args: Mapping[str, Any], tokens: ClassTokens) -> Turns:
    """Return the tokens that are rotated; refuse settings with which the official rotation fails."""
    if not args["if_rope"]:
        return "none"
    size, side = args["img_size"], args["patch_size"]
    extra = {"none": 0, "both": 2}.get(tokens, 1)
    if not isinstance(size, int):
        raise ValueError(f"if_rope=True, img_size={size}: expected one number, which the official rotation divides")
    patches, cells = ((size - side) // args["stride"] + 1) ** 2, (size // side) ** 2
    if (patches + extra) // 2 * 2 != cells or args["embed_dim"] % 4:
        raise ValueError(
            f"if_rope=True: the official model fails with {patches} patches, {extra} class tokens and a width of "
            f"{args['embed_dim']}; expected an even number of patches that do not overlap, at most one class token, "
            "and a width that is a multiple of 4"
        )
    return "stream" if args["if_rope_residual"] else "output"


def _class_tokens(args: Mapping[str, Any]) -> ClassTokens:
    if not args["if_cls_token"]:
        return "none"
    if args["use_double_cls_token"]:
        return "both"
    return "middle" if args["use_middle_cls_token"] else "first"


def infer_config(model: nn.Module, state: State) -> dict[str, Any]:
    """Infer another number of classes, or a position table of another square image."""
    model = cast(Vim, model)
    inferred, embed = infer_num_classes(model, state), model.patch_embed
    side = infer_grid_side(state.get("pos_embed"), len(model.cls_positions), model.patches)
    return inferred if side is None else {**inferred, "img_size": (side - 1) * embed.stride + embed.patch_size}


def adapt(state: State, source: nn.Module, target: nn.Module) -> State:
    """Resize the position table except for the rows of class tokens, and compute the angles again."""
    source, target = cast(Vim, source), cast(Vim, target)
    if target.pos_embed is not None:
        resize = partial(resize_position, grid=source.grid, new_grid=target.grid)
        table = move_rows(state["pos_embed"], source.cls_positions, target.cls_positions, resize)
        state = {**state, "pos_embed": table}
    if target.rope is not None:
        target.rope.to_empty(device="cpu").reset_parameters()
        tables = {f"rope.{name}": value for name, value in target.rope.state_dict().items()}
        state = {**state, **{name: value.to(state[name].dtype) for name, value in tables.items()}}
    return fresh_head(state, target)


VIM = Family(Vim, build, official_name, infer_config=infer_config, adapt=adapt)
