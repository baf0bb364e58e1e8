"""A draft of a plan for models no preset knows, from names and shapes."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from transmamba._checkpoint import Weights, named_tensors, shape_of
from transmamba._typing import typed

Shapes = dict[str, tuple[int, ...]]

# what other libraries call the parts of a block; matched as whole words of a name
SYNONYMS = {
    "norm1": "layernorm_before|input_layernorm|layer_norm1|ln_1|ln1|attention_norm|attn_norm|self_attn_layer_norm",
    "norm2": "layernorm_after|post_attention_layernorm|layer_norm2|ln_2|ln2|ffn_norm|mlp_norm|final_layer_norm",
    "fc1": r"intermediate\.dense|up_proj|c_fc|w1|lin1|linear1|wi|dense_h_to_4h",
    "fc2": r"output\.dense|down_proj|w2|lin2|linear2|wo|dense_4h_to_h",
    "embedding": "embed_tokens|word_embeddings|embeddings|wte|tok_embeddings",
    "norm": "layernorm|post_layernorm|norm_f|ln_f|final_norm|ln_post",
    "head": "classifier|lm_head|fc|output",
    "pos_embed": r"position_embeddings|position_embedding\.weight|pos_embedding|wpe\.weight",
    "blocks": "layers?|h|block|resblocks",
    "proj": "projection|patch_embedding",
}
WRAPPERS = {"model", "backbone", "encoder", "decoder", "transformer", "vit", "bert", "deit", "module", "mlp", "ffn"}


@dataclass(frozen=True)
class Proposal:
    """A plan to read before use.

    Attributes:
        plan: what could be placed.
        unplaced: student name patterns without a source, with the reason.
        unused: teacher name patterns that feed nothing.
    """

    plan: dict[str, tuple[str, str]]
    unplaced: dict[str, str]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        width = max(map(len, [*self.plan, *self.unplaced]), default=0)
        lines = [f"{key:{width}}  <-  {pattern}  [{axes}]" for key, (pattern, axes) in self.plan.items()]
        lines += [f"{key:{width}}  not placed: {reason}" for key, reason in self.unplaced.items()]
        lines += [f"unused in the teacher: {pattern}" for pattern in self.unused]
        return "\n".join(lines)


@typed
def propose_plan(teacher: Weights, student: Weights) -> Proposal:
    """Pair tensors by the likeness of their names and by their shapes, and name their axes by size.

    The stream is the commonest size of norms on either side. It is a draft: axes of unlike meaning and equal size
    cannot be told apart, and fused or gated tensors need a line of their own.

    Args:
        teacher: a module, a state dict, or `open_safetensors(...)`.
        student: a module or a state dict.

    Example:
        >>> import torch
        >>> teacher = {"h.0.ln_1.weight": torch.ones(7), "h.0.mlp.c_fc.weight": torch.ones(11, 7)}
        >>> student = {"blocks.0.norm1.weight": torch.ones(5), "blocks.0.mlp.fc1.weight": torch.ones(6, 5)}
        >>> print(propose_plan(teacher, student))
        blocks.{i}.norm1.weight    <-  h.{i}.ln_1.weight  [residual]
        blocks.{i}.mlp.fc1.weight  <-  h.{i}.mlp.c_fc.weight  [hidden.{i} residual]
    """
    ours, theirs = _patterns(named_tensors(student)), _patterns(named_tensors(teacher))
    stream = _stream(theirs), _stream(ours)
    ranked = sorted(
        (
            (likeness, key, pattern)
            for key in ours
            for pattern in theirs
            if (likeness := _likeness(key, pattern)) > 0.6 and _axes(key, ours[key], theirs[pattern], stream)
        ),
        key=lambda pair: -pair[0],
    )
    found: dict[str, str] = {}
    for _, key, pattern in ranked:
        if key not in found and pattern not in found.values():
            found[key] = pattern
    plan = {key: (found[key], _axes(key, ours[key], theirs[found[key]], stream)) for key in ours if key in found}
    unplaced = {key: _reason(key, ours[key], theirs) for key in ours if key not in found}
    return Proposal(plan, unplaced, tuple(pattern for pattern in theirs if pattern not in found.values()))


def _patterns(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name pattern: the first number is a layer, further ones have letters of their own."""
    shapes: Shapes = {}
    for name in tensors:
        letters = iter("iklmn")
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", lambda _, letters=letters: f"{{{next(letters)}}}", name)  # type: ignore[misc]
        shapes.setdefault(pattern, shape_of(tensors, name))
    return shapes


def _stream(shapes: Shapes) -> int:
    sizes = Counter(shape[0] for name, shape in shapes.items() if len(shape) == 1 and "norm" in _canonical(name))
    sizes = sizes or Counter(size for shape in shapes.values() for size in shape if size > 1)
    return sizes.most_common(1)[0][0] if sizes else 0


def _canonical(name: str) -> str:
    for word, others in SYNONYMS.items():
        name = re.sub(rf"(?<![^.])(?:{others})(?![^.])", word, name.lower())
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(part for part, before in zip(parts, ["", *parts], strict=False) if part != before)


def _likeness(key: str, pattern: str) -> float:
    """0 for another leaf or another kind of place, 1 for the same canonical name."""
    one, two = _canonical(key), _canonical(pattern)
    if one.split(".")[-1] != two.split(".")[-1] or one.count("{") != two.count("{"):
        return 0.0
    return difflib.SequenceMatcher(None, one.split("."), two.split(".")).ratio()


def _axes(key: str, ours: tuple[int, ...], theirs: tuple[int, ...], stream: tuple[int, int]) -> str:
    """Axis words, or an empty string if the shapes cannot be paired."""
    if len(ours) != len(theirs):
        return ""
    words = []
    for dim, (small, large) in enumerate(zip(ours, theirs, strict=True)):
        if (large, small) == stream:
            words.append("residual")
        elif small == large:
            words.append("1" if small == 1 else ".")
        elif "pos_embed" in _canonical(key) and dim == len(ours) - 2:
            words.append("token")
        elif "embedding" in _canonical(key) and dim == 0:
            words.append("vocab")
        elif "{i}" in key:
            words.append("hidden.{i}")
        else:
            words.append("class" if dim == 0 else "")
    return " ".join(words) if all(words) else ""


def _reason(key: str, shape: tuple[int, ...], theirs: Shapes) -> str:
    best = max(theirs, key=lambda pattern: _likeness(key, pattern), default=None)
    if best is None or _likeness(key, best) <= 0.6:
        return "no teacher name is like it"
    return f"{best} is nearest by name, shapes {theirs[best]} and {shape}"
