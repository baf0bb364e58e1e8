"""Our tensors from the canonical ones."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from transmamba.models.pretrained import assign
from transmamba.transfer.teachers import Translated

# our names -> canonical ones; a fused tensor is several, one below the other
_NAMES = (
    (r"(blocks\.\d+)\.(?:attn|mixer)\.qkv\.(\w+)", (r"\1.attn.q.\2", r"\1.attn.k.\2", r"\1.attn.v.\2")),
    (r"(blocks\.\d+)\.(?:attn|mixer)\.proj\.(\w+)", (r"\1.attn.out.\2",)),
    (r"(blocks\.\d+)\.mixer\.(.+)", (r"\1.attn.\2",)),
    (r"(blocks\.\d+\.mlp)\.fc1\.(\w+)", (r"\1.up.\2", r"\1.gate.\2")),
    (r"(blocks\.\d+\.mlp)\.fc2\.(\w+)", (r"\1.down.\2",)),
    (r"patch_embed\.proj\.(\w+)", (r"patch_embed.\1",)),
)


def canonical_names(name: str) -> tuple[str, ...]:
    """Return the canonical names of the tensors that one of ours consists of, in their order."""
    for pattern, templates in _NAMES:
        found = re.fullmatch(pattern, name)
        if found:
            return tuple(found.expand(template) for template in templates)
    return (name,)


def load_canonical(model: nn.Module, translated: Translated, other: Mapping[str, Tensor]) -> None:
    """Give a model on the meta device the teacher's tensors, those in `other` in place of its own.

    Raises:
        ValueError: the teacher has a tensor that the model has no place for, or lacks one.
    """
    wanted = {name: canonical_names(name) for name in model.state_dict()}
    facts = translated.architecture
    # an encoder that was a language model has no tensor more for a head that is its embedding
    spare = {"head.weight"} if facts.kind == "encoder" and facts.tied else set()
    left = sorted(set(translated) - spare - {source for sources in wanted.values() for source in sources})
    if left:
        raise ValueError(
            f"{translated.family}: {type(model).__name__} has no place for {', '.join(left[:6])}"
            f"{f' and {len(left) - 6} more' if len(left) > 6 else ''}"
        )
    try:
        tensors = {name: _tensor(name, sources, translated) for name, sources in wanted.items() if name not in other}
        assign(model, {**tensors, **other})
    except RuntimeError as error:
        raise ValueError(f"{translated.family}: the teacher's tensors do not fit together: {error}") from error


def _tensor(name: str, sources: tuple[str, ...], translated: Translated) -> Tensor:
    """Compute one of our tensors; a bias that the teacher lacks where ours has one is zero."""
    parts = []
    for source in sources:
        weight = source.removesuffix("bias") + "weight"
        if source in translated:
            parts.append(read_tensor(source, translated))
        elif source != weight and source.endswith(".bias") and weight in translated:
            like = read_tensor(weight, translated)
            parts.append(like.new_zeros(len(like)))
    if not parts:
        raise ValueError(f"{translated.family}: the teacher lacks {' and '.join(sources)}")
    # a copy, because training must not change the teacher
    return torch.cat(parts) if len(parts) > 1 else parts[0].clone(memory_format=torch.contiguous_format)


def read_tensor(name: str, translated: Translated) -> Tensor:
    """Read a canonical tensor in the dtype of the stored one, because folding widens it."""
    tensor = translated[name]
    if not translated.note(name):
        return tensor
    return tensor.to(translated.weights[translated.sources(name)[0]].dtype)
