"""Facts found on a module only: timm's Vision Transformers have no configuration, but attributes."""

from typing import Any

from torch import nn

from transmamba.transfer.teachers.architecture import Architecture

ACTIVATIONS = {
    "GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu", "Swish": "silu", "ReLU": "relu",
}  # fmt: skip
LAYER_NORMS = ("LayerNorm", "LayerNormFp32")
RMS_NORMS = ("RMSNorm", "RmsNorm", "RmsNormFp32")
# blocks whose tensors are called as those of a plain block
PLAIN_NAMES = {"ResPostBlock": "x + norm(f(x))", "EvaBlockPostNorm": "x + norm(f(x))"}


def describe_module(module: nn.Module) -> dict[str, Any] | None:
    """Return the facts of a Vision Transformer with timm's attributes, or of a model of this library.

    Returns:
        None for any other module. The key "refused" is there if the model has a part that its tensors do not show and
        no canonical Transformer has.
    """
    facts: Any = getattr(module, "architecture", None)
    if isinstance(facts, Architecture):
        return {"model_type": "transmamba_transformer", "architecture": facts}
    blocks = getattr(module, "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
        return None
    block: Any = blocks[0]
    if hasattr(getattr(block, "mixer", None), "out_proj"):
        groups = getattr(getattr(block.mixer, "ssm", None), "groups", None)
        place = "middle" if getattr(module, "cls_position", 0) else "front"
        return {"model_type": "transmamba", "class_position": place, **({} if groups is None else {"groups": groups})}
    if not hasattr(module, "patch_embed"):
        return None
    attention = getattr(block, "attn", None)
    heads = getattr(attention, "num_heads", getattr(attention, "heads", None))
    eps = getattr(getattr(block, "norm1", None), "eps", None)
    if not isinstance(heads, int) or eps is None:
        return None
    grid = getattr(module, "grid", None) or getattr(module.patch_embed, "grid_size", None)
    facts = {
        "model_type": "timm_vit",
        "num_heads": heads,
        "scale": getattr(attention, "scale", None),
        "eps": eps,
        "norm": "rms" if type(block.norm1).__name__ in RMS_NORMS else "layer",
        "act": _activation(getattr(getattr(block, "mlp", None), "act", None)),
        "gate_last": getattr(getattr(block, "mlp", None), "gate_last", None),
        "global_pool": _pool(module),
        "grid": tuple(grid) if grid is not None and not callable(grid) else None,
        "rope": _rope(module, attention),
        "refused": _obstacle(module, blocks),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _activation(act: object) -> str:
    if isinstance(act, nn.GELU):
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    return "gelu" if act is None else ACTIVATIONS.get(type(act).__name__, type(act).__name__)


def _pool(module: nn.Module) -> str:
    return "all tokens" if getattr(module, "pool_include_prefix", False) else getattr(module, "global_pool", "token")


def _rope(module: nn.Module, attention: Any) -> dict[str, Any] | None:
    """Return the rotary positions of DINOv3; a type "refused" for others, of which timm has several."""
    rope: Any = getattr(module, "rope", None)
    if rope is None:
        return None
    plain = {"min_period": None, "max_period": None, "normalize_coords": "separate", "grid_offset": 0.0}
    halves = getattr(rope, "rotate_half", False) and getattr(attention, "rotate_half", False)
    if not halves or any(getattr(rope, key, "absent") != value for key, value in plain.items()):
        return {"rope_type": type(rope).__name__}
    return {"rope_type": "axial", "rope_theta": rope.temperature}


def _obstacle(module: nn.Module, blocks: nn.Module) -> str | None:
    kinds = {type(block).__name__ for block in blocks.children()}
    for kind in kinds & set(PLAIN_NAMES):
        return f"blocks of class {kind} compute {PLAIN_NAMES[kind]}, and their norms are called as those of a plain ViT"
    if any(getattr(block, "window_size", None) not in (None, 0, (0, 0)) for block in blocks.children()):
        return "blocks attend within windows"
    norms = [norm for name, norm in module.named_modules() if _is_norm(name)]
    unknown = {type(norm).__name__ for norm in norms} - {*LAYER_NORMS, *RMS_NORMS, "Identity"}
    if unknown:
        return f"norms of class {', '.join(sorted(unknown))}"
    if len({type(norm).__name__ in RMS_NORMS for norm in norms if not isinstance(norm, nn.Identity)}) > 1:
        return "both LayerNorm and RMSNorm"
    if len({getattr(norm, "eps", None) for norm in norms if not isinstance(norm, nn.Identity)}) > 1:
        return "its norms have several eps"
    projection = getattr(module.patch_embed, "proj", None)
    if isinstance(projection, nn.Conv2d) and projection.stride != projection.kernel_size:
        return f"patches of {projection.kernel_size} pixels are cut every {projection.stride} pixels"
    return None


def _is_norm(name: str) -> bool:
    parts = name.split(".")
    own = parts[0] == "blocks" or len(parts) == 1
    return own and parts[-1] in ("norm", "norm1", "norm2", "norm_pre", "fc_norm", "q_norm", "k_norm")
