"""A Transformer of any known family as one of our own models, with the same output."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transmamba._checkpoint import Weights
from transmamba._typing import typed
from transmamba.models.mamba_lm import MambaLM
from transmamba.models.pretrained import assign
from transmamba.models.stack import Builders
from transmamba.models.vit import ViT
from transmamba.nn import Attention, TransformerBlock
from transmamba.transfer.teachers import Translated, translate

Options = dict[str, Any]


@typed
def from_transformer(teacher: Weights, family: str | None = None, *, config: Any = None) -> nn.Module:
    """Build the Transformer that a teacher is, as one of our own models with its weights, in evaluation mode.

    An image model becomes a `ViT`, a text encoder a `TransformerEncoder`, an audio encoder an `AudioEncoder` and a
    language model a `MambaLM` with attention in all layers. The weights are copies, of the teacher's dtype and on its
    device.

    Args:
        teacher: a module, a state dict, or `open_safetensors(...)`; or a teacher that is already translated.
        family: name of its family, where its config does not tell; see `transfer.translate`.
        config: the configuration of a bare state dict.

    Raises:
        ValueError: the teacher is refused, the checkpoint alone does not tell everything about it, or it has a part
            that our model lacks; the message names it.

    Example:
        >>> from transmamba.models import ViT
        >>> vit = from_transformer(ViT(img_size=8, patch_size=4, dim=12, depth=2, heads=3, num_classes=5))
        >>> type(vit).__name__, vit(torch.zeros(1, 3, 8, 8)).shape
        ('ViT', torch.Size([1, 5]))
    """
    translated = translate(teacher, family, config)
    facts = translated.architecture
    if facts.unknown:
        raise ValueError(
            f"{translated.family}: the checkpoint does not tell {', '.join(facts.unknown)}: give its config=..., the "
            "dictionary of its config.json, or the module instead of its state dict"
        )
    with torch.device("meta"):
        model = BUILDERS[facts.kind](Parts(translated))
    _load(model, translated)
    return model.eval()


class Parts:
    """What a translated teacher is made of, as arguments of our modules."""

    def __init__(self, translated: Translated) -> None:
        self.translated, self.facts = translated, translated.architecture

    def has(self, *names: str) -> bool:
        """Whether the teacher has one of these tensors."""
        return any(name in self.translated for name in names)

    def rows(self, name: str, axis: int = 0) -> int:
        """Size of a tensor along an axis."""
        return self.translated.shape(name)[axis]

    def refuse(self, reason: str) -> ValueError:
        """Return the error that names what stands in the way."""
        return ValueError(f"{self.translated.family}: {reason}")

    @property
    def mixers(self) -> Builders:
        """The attention of every layer."""
        return _merged([self._attention(i) for i in range(self.facts.depth)])

    @property
    def blocks(self) -> Builders:
        """Everything around it."""
        return _merged([self._block(i) for i in range(self.facts.depth)])

    def _attention(self, i: int) -> Callable[..., nn.Module]:
        facts, prefix = self.facts, f"blocks.{i}.attn"
        heads, head_dim, kv_heads = facts.heads, facts.head_dim, facts.kv_heads
        if heads is None or head_dim is None:
            raise self.refuse("the checkpoint does not tell the heads: give its config=...")
        options: Options = {
            "heads": heads,
            "kv_heads": None if kv_heads == heads else kv_heads,
            "head_dim": None if head_dim * heads == facts.dim else head_dim,
            "causal": facts.causal,
            "qkv_bias": self.has(*(f"{prefix}.{letter}.bias" for letter in "qkv")),
            "out_bias": self.has(f"{prefix}.out.bias"),
            "scale": facts.scale,
            "softcap": facts.softcap,
            "rope": self._rope(i),
            "window": facts.windows[i] if facts.windows else None,
        }
        if self.has(f"{prefix}.q_norm.weight"):
            size = self.rows(f"{prefix}.q_norm.weight")
            kinds = {heads * head_dim: "full", head_dim: "head"}
            if size not in kinds:
                raise self.refuse(f"its norm of queries has {size} entries, a head {head_dim} channels")
            bias = self.has(f"{prefix}.q_norm.bias", f"{prefix}.k_norm.bias")
            options |= {"qk_norm": kinds[size], "norm": facts.norm, "norm_eps": facts.eps, "norm_bias": bias}
        if self.has(f"{prefix}.relative_bias"):
            options["relative_grid"] = self.grid
        return partial(Attention, **_given(options))

    def _rope(self, i: int) -> Options | None:
        rope = self.facts.ropes[i] if self.facts.ropes else None
        if rope is None:
            return None
        return {**rope, "grid": self.grid} if rope.get("rope_type") == "axial" else dict(rope)

    @property
    def grid(self) -> list[int]:
        """Rows and columns of patches."""
        if self.facts.grid is None:
            raise self.refuse("the checkpoint does not tell the grid of patches: give its config=...")
        return list(self.facts.grid)

    def _block(self, i: int) -> Callable[..., nn.Module]:
        facts, prefix = self.facts, f"blocks.{i}"
        norms = ["norm1", "norm2", *(["post_norm1", "post_norm2"] if facts.placement == "sandwich" else [])]
        up = f"{prefix}.mlp.up.weight"
        options: Options = {
            "hidden_dim": self.rows(up) if self.has(up) else None,
            "gated": self.has(f"{prefix}.mlp.gate.weight"),
            "activation": facts.activation,
            "mlp_bias": self.has(*(f"{prefix}.mlp.{part}.bias" for part in ("up", "gate", "down"))),
            "norm": facts.norm,
            "eps": facts.eps,
            "norm_bias": self.has(*(f"{prefix}.{norm}.bias" for norm in norms)),
            "placement": facts.placement,
            "parallel": facts.parallel,
            "without": [norm for norm in norms if not self.has(f"{prefix}.{norm}.weight")],
        }
        return partial(TransformerBlock, **_given(options))


def _given(options: Options) -> Options:
    return {name: value for name, value in options.items() if value is not None and value != []}


def _merged(builders: Sequence[Callable[..., nn.Module]]) -> Builders:
    """One builder where all layers are alike."""
    first: Any = builders[0]
    alike = all(builder.keywords == first.keywords for builder in builders)  # type: ignore[attr-defined]
    return first if alike else list(builders)


def _language_model(parts: Parts) -> nn.Module:
    facts = parts.facts
    if not facts.causal:
        raise parts.refuse("a language model attends to earlier tokens only, this one to all")
    return MambaLM(
        parts.rows("embedding.weight"),
        facts.dim,
        depth=facts.depth,
        mixer=parts.mixers,
        block=parts.blocks,
        tied=facts.tied and _same(parts.translated, "embedding.weight", "head.weight"),
        vocab_multiple=1,
        norm=facts.norm,
        norm_eps=facts.eps,
        norm_bias=parts.has("norm.bias"),
        max_length=parts.rows("pos_embed", 1) if parts.has("pos_embed") else None,
        head_bias=parts.has("head.bias"),
        logit_softcap=facts.logit_softcap,
    )


def _image_model(parts: Parts) -> nn.Module:
    facts, has = parts.facts, parts.has
    side, (rows, columns) = parts.rows("patch_embed.weight", 2), parts.grid
    class_token, classes = has("cls_token"), parts.rows("head.weight") if has("head.weight") else 0
    if classes and facts.pool is None:
        raise parts.refuse("the checkpoint does not tell what the head reads: give its config=...")
    return ViT(
        (rows * side, columns * side),
        side,
        in_chans=parts.rows("patch_embed.weight", 1),
        num_classes=classes,
        dim=facts.dim,
        depth=facts.depth,
        distilled=has("head_dist.weight") or ("token" if has("dist_token") else False),
        mixer=parts.mixers,
        block=parts.blocks,
        class_token=class_token,
        registers=parts.rows("reg_token", 1) if has("reg_token") else 0,
        position_table=has("pos_embed"),
        prefix_positions=parts.rows("pos_embed", 1) - rows * columns if has("pos_embed") else None,
        patch_bias=has("patch_embed.bias"),
        norm_pre=has("norm_pre.weight"),
        norm=facts.norm,
        norm_eps=facts.eps,
        norm_bias=has("norm_pre.bias", "norm.bias", "fc_norm.bias"),
        final_norm=has("norm.weight"),
        pool="token" if class_token and facts.pool != "mean" else "mean",
        fc_norm=has("fc_norm.weight"),
    )


BUILDERS: Mapping[str, Callable[[Parts], nn.Module]] = {"decoder": _language_model, "image": _image_model}


def _same(translated: Translated, one: str, other: str) -> bool:
    """Whether two canonical tensors are computed from one stored tensor in the same way."""
    return [translated.sources(one), translated.note(one)] == [translated.sources(other), translated.note(other)]


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
    """Canonical names of the tensors that one of ours consists of, in their order."""
    for pattern, templates in _NAMES:
        found = re.fullmatch(pattern, name)
        if found:
            return tuple(found.expand(template) for template in templates)
    return (name,)


def _load(model: nn.Module, translated: Translated) -> None:
    """Give a model on the meta device the teacher's tensors.

    Raises:
        ValueError: the teacher has a tensor that the model has no place for, or lacks one.
    """
    wanted = {name: canonical_names(name) for name in model.state_dict()}
    left = sorted(set(translated) - {source for sources in wanted.values() for source in sources})
    if left:
        raise ValueError(
            f"{translated.family}: {type(model).__name__} has no place for {', '.join(left[:6])}"
            f"{f' and {len(left) - 6} more' if len(left) > 6 else ''}"
        )
    try:
        assign(model, {name: _tensor(name, sources, translated) for name, sources in wanted.items()})
    except RuntimeError as error:
        raise ValueError(f"{translated.family}: the teacher's tensors do not fit together: {error}") from error


def _tensor(name: str, sources: tuple[str, ...], translated: Translated) -> Tensor:
    """One of our tensors; a bias that the teacher lacks where ours has one is zero."""
    parts = []
    for source in sources:
        weight = source.removesuffix("bias") + "weight"
        if source in translated:
            parts.append(_read(source, translated))
        elif source != weight and source.endswith(".bias") and weight in translated:
            like = _read(weight, translated)
            parts.append(like.new_zeros(len(like)))
    if not parts:
        raise ValueError(f"{translated.family}: the teacher lacks {' and '.join(sources)}")
    # a copy, because training must not change the teacher
    return torch.cat(parts) if len(parts) > 1 else parts[0].clone(memory_format=torch.contiguous_format)


def _read(name: str, translated: Translated) -> Tensor:
    """A canonical tensor in the dtype of the stored one; folding widens it."""
    tensor = translated[name]
    if not translated.note(name):
        return tensor
    return tensor.to(translated.weights[translated.sources(name)[0]].dtype)
