"""Facts of our own Transformers, as a teacher's configuration states them."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from transmamba.nn import Attention, LayerNorm, RMSNorm, TransformerBlock
from transmamba.transfer.teachers.architecture import Architecture, Kind


def read_architecture(model: nn.Module, kind: Kind, **facts: Any) -> Architecture | None:
    """Read the facts of a model from its blocks; `facts` are those outside of them.

    Returns:
        None if not all its mixers are attention, because the model is then no Transformer.

    Raises:
        ValueError: blocks differ in something that a canonical Transformer has one of.
    """
    blocks: list[Any] = list(model.blocks)  # type: ignore[arg-type]
    mixers: list[Any] = [getattr(block, getattr(block, "mixer_name", ""), None) for block in blocks]
    if not all(isinstance(block, TransformerBlock) for block in blocks):
        return None
    if not all(type(mixer) is Attention for mixer in mixers):  # a subclass computes something else
        return None
    norms = [module for module in model.modules() if isinstance(module, LayerNorm | RMSNorm)]
    first = mixers[0]
    shared = ("heads", "kv_heads", "head_dim", "causal", "scale", "softcap")
    found = {name: _one(name, (getattr(mixer, name) for mixer in mixers)) for name in shared}
    found |= {name: _one(name, (getattr(block, name) for block in blocks)) for name in ("placement", "parallel")}
    found |= {"eps": _one("eps", (norm.eps for norm in norms), 1e-6)}
    found |= {"norm": _one("norm", ("rms" if isinstance(norm, RMSNorm) else "layer" for norm in norms), "layer")}
    activations = (block.mlp.activation for block in blocks if block.mlp is not None)
    found |= {"activation": _one("activation", activations, "gelu")}
    if first.scale == first.head_dim**-0.5:
        found["scale"] = None
    ropes, windows = [_rope(mixer, facts.get("grid")) for mixer in mixers], [mixer.window for mixer in mixers]
    return Architecture(
        kind,
        dim=blocks[0].dim,
        depth=len(blocks),
        ropes=tuple(ropes) if any(ropes) else (),
        windows=tuple(windows) if any(windows) else (),
        **found,
        **facts,
    )


def _one(name: str, values: Iterable[Any], default: Any = None) -> Any:
    kinds = list(dict.fromkeys(values))
    if len(kinds) > 1:
        raise ValueError(f"layers differ in {name}, {' and '.join(map(repr, kinds))}: a teacher has one for all layers")
    return kinds[0] if kinds else default


def _rope(mixer: Attention, grid: tuple[int, ...] | None) -> dict[str, Any] | None:
    grids = [mixer.relative_grid, None if mixer.rotary is None else mixer.rotary.grid]
    for own in grids:
        if own is not None and own != grid:
            raise ValueError(f"attention is for a grid of {own}, the model has {grid}")
    if mixer.rotary is None:
        return None
    return {key: value for key, value in mixer.rotary.rope.items() if key != "grid"}
