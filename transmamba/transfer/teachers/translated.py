"""A teacher in canonical form: every stored tensor is used, or ignored by name."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from transmamba._checkpoint import LazyTensors
from transmamba.transfer.teachers.architecture import Architecture
from transmamba.transfer.teachers.checkpoint import BUFFERS, Checkpoint
from transmamba.transfer.teachers.family import Canonical
from transmamba.transfer.teachers.terms import Term
from transmamba.transfer.tensor_checks import check_source

# stored names that show that a teacher is not a plain Transformer
OBSTACLES = (
    (r"lora_|\.base_layer\.|adapter", "an adapter that is not merged: call merge_and_unload() on the teacher first"),
    (
        r"\.(SCB|weight_format|absmax|quant_map|quant_state.*|qweight|qzeros|scales|g_idx|_packed_params.*)$",
        "quantised layers: load the teacher without quantisation",
    ),
    (
        r"parametrizations\.|\.weight_[gv]$",
        "parametrised weights: remove them first, torch.nn.utils.parametrize.remove_parametrizations",
    ),
)


class Translated(Mapping[str, Tensor]):
    """A teacher by canonical names, read and translated tensor by tensor when asked for.

    Values are folded in float32 at least; a tensor that is only renamed or rearranged keeps its dtype.

    Attributes:
        family: name of the family.
        architecture: facts that tensors do not hold, and the list of canonical names.
        differs: properties of the teacher that the translation cannot keep.
        ignored: stored names outside the Transformer -> their purpose.
        weights: the stored tensors.
    """

    def __init__(self, family: str, checkpoint: Checkpoint, canonical: Canonical) -> None:
        self.family, self.differs = family, canonical.differs
        self.weights, self._stored = checkpoint.weights, checkpoint.stored
        self._terms = _resolve(family, checkpoint, canonical)
        self.ignored = _account(family, checkpoint, canonical, self._terms)
        unknown = tuple(dict.fromkeys((*canonical.architecture.unknown, *checkpoint.config.unknown)))
        self.architecture = _complete(replace(canonical.architecture, unknown=unknown), self)

    def __getitem__(self, name: str) -> Tensor:
        term, layer = self._terms[name]
        return term.read(self._reader(layer), fresh=isinstance(self.weights, LazyTensors))

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def __contains__(self, name: object) -> bool:
        return name in self._terms

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a canonical tensor without reading it."""
        term, layer = self._terms[name]
        sizes = self._meta(layer)
        return tuple(term.read(sizes, fresh=True).shape)

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the stored names that a canonical tensor is computed from, its own first."""
        term, layer = self._terms[name]
        return tuple(self._stored[source] for source in term.sources(layer))

    def note(self, name: str) -> str:
        """Describe how values change; empty if the tensor is only renamed or rearranged."""
        term, layer = self._terms[name]
        return term.note.replace("{i}", str(layer))

    def score(self, name: str, importance: Mapping[str, Tensor] | Callable[[str, Tensor], Tensor]) -> Tensor | None:
        """Return the scores of a canonical tensor; None if a mapping of scores has none for it.

        A function gets the stored name, and the folded tensor where values change, because that is the weight which the
        function of the teacher contains. Given scores are rearranged as the tensor is.
        """
        term, layer = self._terms[name]
        stored = self.sources(name)[0]
        if not isinstance(importance, Mapping) and term.note:
            return importance(stored, self[name])
        tensor = self.weights[stored].detach() if not isinstance(importance, Mapping) else None
        score = importance(stored, tensor) if tensor is not None else importance.get(stored)  # type: ignore[operator,union-attr]
        if score is None:
            return None
        shape = tuple(self._meta(layer)(term.name).shape)
        if score.dim() != len(shape) or any(a not in (1, b) for a, b in zip(score.shape, shape, strict=True)):
            raise ValueError(
                f"importance of {stored} has shape {tuple(score.shape)}, the tensor {shape}: expected one score per"
                " weight, or 1 on the axes along which the score is constant"
            )
        return term.arrange(score.detach(), shape)

    def check(self, name: str) -> None:
        """Raise TypeError or ValueError unless the stored tensors behind a canonical one are plain floating numbers."""
        for stored in self.sources(name):
            check_source(stored, self.weights)

    def _reader(self, layer: int) -> Callable[[str], Tensor]:
        return lambda name: self.weights[self._stored[name.replace("{i}", str(layer))]].detach()

    def _meta(self, layer: int) -> Callable[[str], Tensor]:
        def empty(name: str) -> Tensor:
            stored = self._stored[name.replace("{i}", str(layer))]
            header = isinstance(self.weights, LazyTensors)
            shape = self.weights.shape(stored) if header else self.weights[stored].shape  # type: ignore[attr-defined]
            return torch.empty(shape, device="meta", dtype=torch.float32)

        return empty


def _resolve(family: str, checkpoint: Checkpoint, canonical: Canonical) -> dict[str, tuple[Term, int]]:
    """Resolve the terms of every layer.

    Raises:
        ValueError: a required tensor is missing.
    """
    found: dict[str, tuple[Term, int]] = {}
    missing = []
    for name, term in canonical.terms.items():
        for layer in range(canonical.architecture.depth) if "{i}" in name else [0]:
            absent = [source for source in term.sources(layer) if source not in checkpoint]
            if not absent:
                found[name.replace("{i}", str(layer))] = term, layer
            elif not term.optional or term.name.replace("{i}", str(layer)) not in absent:
                missing += absent
    if missing:
        raise ValueError(f"{family}: the teacher lacks {_few(missing)}{_obstacle(checkpoint)}")
    return found


def _account(
    family: str, checkpoint: Checkpoint, canonical: Canonical, terms: Mapping[str, tuple[Term, int]]
) -> dict[str, str]:
    """Return the stored tensors that are ignored, with the reason.

    Raises:
        ValueError: a tensor is neither used nor ignored.
    """
    used = {source for term, layer in terms.values() for source in term.sources(layer)}
    ignored, left = {}, []
    for name, stored in checkpoint.stored.items():
        if name in used:
            continue
        reasons = [reason for pattern, reason in canonical.ignored.items() if re.fullmatch(pattern, name)]
        if reasons or re.fullmatch(BUFFERS, name):
            ignored[stored] = reasons[0] if reasons else "buffer"
        elif checkpoint.is_outside(name):
            ignored[stored] = f"another part of the model, outside {checkpoint.prefix.rstrip('.')}"
        else:
            left.append(stored)
    if left:
        raise ValueError(
            f"{family}: {len(left)} tensors of the teacher have no place: {_few(left)}{_obstacle(checkpoint)}"
        )
    return ignored


def _complete(architecture: Architecture, translated: Translated) -> Architecture:
    """Fill in facts that follow from shapes, and check that heads and shapes agree.

    Raises:
        ValueError: they do not.
    """
    if architecture.kind == "ssm":
        return architecture
    known, rows = architecture, translated.shape("blocks.0.attn.q.weight")[0]
    keys = translated.shape("blocks.0.attn.k.weight")[0]
    if known.heads is None:
        return known
    head_dim = known.head_dim or rows // known.heads
    kv_heads = known.kv_heads or (keys // head_dim if head_dim else 0)
    if rows != known.heads * head_dim or keys != kv_heads * head_dim or not kv_heads or known.heads % kv_heads:
        raise ValueError(
            f"{translated.family}: {rows} query and {keys} key rows are not those of {known.heads} heads and"
            f" {kv_heads} key heads of {head_dim} channels: the configuration belongs to another checkpoint"
        )
    return replace(known, head_dim=head_dim, kv_heads=kv_heads)


def square_grid(rows: int, prefixes: Iterable[int]) -> tuple[int, int] | None:
    """Find the square grid of a position table, if exactly one number of prefix tokens leaves a square of `rows`."""
    sides = {math.isqrt(rows - count) for count in prefixes if math.isqrt(rows - count) ** 2 == rows - count > 0}
    return (next(iter(sides)),) * 2 if len(sides) == 1 else None


def _obstacle(checkpoint: Checkpoint) -> str:
    hits = (hint for pattern, hint in OBSTACLES if any(re.search(pattern, name) for name in checkpoint.stored))
    hint = next(hits, None)
    return "" if hint is None else f"; the teacher has {hint}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")
