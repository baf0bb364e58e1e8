"""A teacher's attention weights, in the form in which a mixer can take them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from transmamba.transfer.source import Source


@dataclass(frozen=True)
class AttentionInit:
    """Ask `subclone` to derive the SSM parameters from the teacher's attention.

    A Mamba mixer has one pair B, C for all channels: it gets the mean of the heads' score matrices and the sum of their
    value-output maps, each as the best approximation of the rank that fits. Channels come in pairs of opposite sign,
    because silu(t) - silu(-t) = t, so the first forward is linear although the mixer is not. A Mamba-2 mixer takes
    heads one to one, Q to C, K to B, V to x, O to out_proj; its SiLU then acts as the feature map.

    The gate is opened to exactly one where the input projection has a bias or the norm before it gives a constant
    direction (a LayerNorm with a bias); elsewhere it keeps its initialisation, and the report lists it.

    On a real language model this start does nothing: on SmolLM2-135M its output is 3 to 7 % of the attention's in size
    and explains none of it, because the gate stays random (an RMSNorm has no bias), rotary positions are lost, scores
    are too large to be linear, and all heads share one score (docs/results.md, "A language model in closed form").
    Solve the readouts of mixers with a random start instead: `fit_layers`.

    Args:
        heads: query heads of the teacher; None takes the number in its configuration.
        length: tokens over which attention is a mean.
        kv_heads: key and value heads; by default the number in the configuration, or as many as heads.
        decay: share of the state, about, that is lost over `length` tokens.

    Raises:
        ValueError: a number is not positive, or the key heads do not divide the heads.

    Reference:
        MambaInLlama, arXiv 2408.15237; MOHAWK, arXiv 2408.10189. Pairs, ranks and dt are ours.
    """

    heads: int | None
    length: int
    kv_heads: int | None = None
    decay: float = 0.01

    def __post_init__(self) -> None:
        groups = self.heads if self.kv_heads is None else self.kv_heads
        if min(size for size in (self.heads, self.length, groups) if size is not None) < 1 or not self.decay > 0:
            raise ValueError(f"heads, length and decay must be positive, got {self}")
        if self.heads is not None and groups is not None and self.heads % groups:
            raise ValueError(f"key heads must divide the heads: got {groups} key heads, {self.heads} heads")


class Start(NamedTuple):
    """An `AttentionInit` for one teacher: query heads, key heads, tokens and decay."""

    heads: int
    groups: int
    length: int
    decay: float


class AttentionWeights(NamedTuple):
    """One layer's attention on the student's channels; the last column of q, k, v is their bias, o_bias is o's."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    o_bias: Tensor


class MixerInput(NamedTuple):
    """Input of a mixer: whether its projection has a bias, and which direction of the norm's output is always 1."""

    bias: bool
    constant: Tensor | None

    @property
    def has_constant(self) -> bool:
        """Whether biases and an open gate can be expressed."""
        return self.bias or self.constant is not None

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows with a bias column as the weight and the bias of the projection."""
        weight, bias = rows[:, :-1], rows[:, -1]
        return (weight if self.bias or self.constant is None else weight + bias[:, None] * self.constant), bias


def read_attention(
    init: Start, names: list[str], source: Source, kept: tuple[int, ...] | None, biases: bool
) -> AttentionWeights:
    """Read the attention of one layer: query, key, value and output weights, and their biases.

    A scale of the scores other than head_dim ** -0.5 is multiplied into the queries.
    """
    index = torch.arange(source.shape(names[0])[1]) if kept is None else torch.tensor(kept)
    rows = []
    for name in names[:-1]:
        weight, bias = source[name].float().cpu(), source[name.removesuffix("weight") + "bias"].float().cpu()
        rows.append(torch.cat([weight[:, index], (bias if biases else torch.zeros_like(bias))[:, None]], 1))
    scale, head_dim = source.translated.architecture.scale, len(rows[0]) // init.heads  # type: ignore[union-attr]
    rows[0] = rows[0] if scale is None else rows[0] * (scale * math.sqrt(head_dim))
    o, o_bias = (source[names[-1].removesuffix("weight") + leaf].float().cpu()[index] for leaf in ("weight", "bias"))
    q, k, v = rows
    return AttentionWeights(q, k, v, o, o_bias)


def constant_direction(layer: int, norms: Mapping[str, Tensor]) -> Tensor | None:
    """Return the w with w.h = 1 for all h = gamma n + beta of a LayerNorm: w = c / gamma, because sum(n) = 0."""
    gamma, beta = (norms.get(f"blocks.{layer}.norm1.{leaf}") for leaf in ("weight", "bias"))
    if gamma is None or beta is None:
        return None
    inverse = 1.0 / gamma.double()
    one = inverse / (inverse @ beta.double())
    # a direction this steep would amplify rounding, and every later change of the norm
    return one.float() if bool(one.isfinite().all()) and float(one.norm()) < 30.0 else None


def expand_heads(init: Start, rows: Tensor) -> Tensor:
    """Repeat key or value rows, once for each query head that reads them."""
    return rows.unflatten(0, (init.groups, -1)).repeat_interleave(init.heads // init.groups, 0).flatten(0, 1)
