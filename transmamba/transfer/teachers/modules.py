"""Facts that only a module tells: timm's Vision Transformers have no configuration, but attributes."""

from typing import Any

from torch import nn

ACTIVATIONS = {"GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu", "ReLU": "relu"}


def describe_module(module: nn.Module) -> dict[str, Any] | None:
    """The facts of a Vision Transformer with timm's attributes, or of a state-space model of this library.

    Returns:
        None for any other module.
    """
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
        "eps": eps,
        "act": _activation(getattr(getattr(block, "mlp", None), "act", None)),
        "global_pool": getattr(module, "global_pool", "token"),
        "grid": tuple(grid) if grid is not None and not callable(grid) else None,
        "parallel": hasattr(block, "mlp_norm") or hasattr(block, "attns"),
        "rope": getattr(module, "rope", None) is not None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _activation(act: object) -> str | None:
    if isinstance(act, nn.GELU):
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    return "gelu" if act is None else ACTIVATIONS.get(type(act).__name__, type(act).__name__)
