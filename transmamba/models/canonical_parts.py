"""The parts of a translated teacher, as arguments of our modules."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transmamba.models.canonical_tensors import read_tensor
from transmamba.models.stack import Builders
from transmamba.nn import Attention, TransformerBlock
from transmamba.nn.position import resize_position
from transmamba.transfer.teachers import Translated

Options = dict[str, Any]


class Parts:
    """The parts of a translated teacher, as arguments of our modules.

    Args:
        translated: the teacher.
        img_size: rows and columns of the images in pixels, if other than the teacher's.
    """

    def __init__(self, translated: Translated, img_size: tuple[int, int] | None = None) -> None:
        self.translated, self.facts, self.img_size = translated, translated.architecture, img_size

    def has(self, *names: str) -> bool:
        """Check whether the teacher has one of these tensors."""
        return any(name in self.translated for name in names)

    def rows(self, name: str, axis: int = 0) -> int:
        """Return the size of a tensor along an axis."""
        if name not in self.translated:
            raise self.refuse(f"the teacher lacks {name}")
        return self.translated.shape(name)[axis]

    def same(self, one: str, other: str) -> bool:
        """Check whether two tensors are computed from one stored tensor in the same way."""
        translated = self.translated
        return all(describe(one) == describe(other) for describe in (translated.sources, translated.note))

    def refuse(self, reason: str) -> ValueError:
        """Return the error for a teacher that cannot be built, with the reason."""
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
            raise self.refuse("the checkpoint does not state the heads: give its config=...")
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
            if self.grid != self.own_grid:
                rows, columns = self.own_grid
                raise self.refuse(
                    f"img_size= changes the grid, and the attention has a learned bias for distances on {rows} by"
                    f" {columns} patches: leave img_size out"
                )
            options["relative_grid"] = list(self.grid)
        return partial(Attention, **_given(options))

    def _rope(self, i: int) -> Options | None:
        rope = self.facts.ropes[i] if self.facts.ropes else None
        if rope is None:
            return None
        return {**rope, "grid": list(self.grid)} if rope.get("rope_type") == "axial" else dict(rope)

    @property
    def own_grid(self) -> tuple[int, int]:
        """Rows and columns of patches that the teacher was built for."""
        if self.facts.grid is None:
            raise self.refuse("the checkpoint does not state the grid of patches: give its config=...")
        return self.facts.grid

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of our model."""
        if self.img_size is None:
            return self.own_grid
        side = self.rows("patch_embed.weight", 2)
        return self.img_size[0] // side, self.img_size[1] // side

    @property
    def prefix_positions(self) -> int | None:
        """Rows of the position table that belong to tokens before the patches; None without a table."""
        return self.rows("pos_embed", 1) - math.prod(self.own_grid) if self.has("pos_embed") else None

    def positions(self) -> dict[str, Tensor]:
        """Return the position table for another grid than the teacher's, resized as its family does; else nothing."""
        prefix = self.prefix_positions
        if prefix is None or self.grid == self.own_grid:
            return {}
        table, (mode, _, smooth) = read_tensor("pos_embed", self.translated), self.facts.position_resize.partition("_")
        method: Any = {"mode": mode, "antialias": bool(smooth)}
        patches = resize_position(table[:, prefix:], self.own_grid, self.grid, **method)
        return {"pos_embed": torch.cat([table[:, :prefix], patches], 1)}

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
    """Return one builder where all layers are alike."""
    first: Any = builders[0]
    alike = all(builder.keywords == first.keywords for builder in builders)  # type: ignore[attr-defined]
    return first if alike else list(builders)
