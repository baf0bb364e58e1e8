"""What a teacher's attention does, and what a mixer can read of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from transmamba._checkpoint import read


@dataclass(frozen=True)
class AttentionInit:
    """Ask `subclone` to derive the SSM parameters from the teacher's attention.

    A Mamba mixer has one pair B, C for all channels: it gets the mean of the heads' score matrices and the sum of their
    value-output maps, each as the best approximation of the rank that fits. Channels come in pairs of opposite sign,
    because silu(t) - silu(-t) = t, so the first forward is linear although the mixer is not. A Mamba-2 mixer takes
    heads one to one, Q to C, K to B, V to x, O to out_proj; its SiLU then acts as the feature map.

    The gate is opened to exactly one where the input projection has a bias or the norm before it gives a constant
    direction (a LayerNorm with a bias); elsewhere it keeps its initialisation, and the report says so.

    Args:
        heads: query heads of the teacher.
        length: tokens over which attention is a mean.
        kv_heads: key and value heads, if fewer.
        decay: share of the state, about, that is lost over `length` tokens.

    Raises:
        ValueError: a number is not positive, or the key heads do not divide the heads.

    Reference:
        MambaInLlama, arXiv 2408.15237; MOHAWK, arXiv 2408.10189. Pairs, ranks and dt are ours.
    """

    heads: int
    length: int
    kv_heads: int | None = None
    decay: float = 0.01

    def __post_init__(self) -> None:
        groups = self.kv_heads or self.heads
        if min(self.heads, self.length, groups) < 1 or not self.decay > 0:
            raise ValueError(f"heads, length and decay must be positive, got {self}")
        if self.heads % groups:
            raise ValueError(f"key heads must divide the heads: got {groups} key heads, {self.heads} heads")


class Circuit(NamedTuple):
    """One layer's attention on the student's channels; the last column of q, k, v is their bias, o_bias is o's."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    o_bias: Tensor


class Input(NamedTuple):
    """What the mixer reads: does its projection have a bias, and which direction of the norm's output is always 1."""

    bias: bool
    one: Tensor | None

    @property
    def has_constant(self) -> bool:
        """Whether biases and an open gate can be expressed."""
        return self.bias or self.one is not None

    def lay(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows with a bias column as weight and bias of the projection."""
        weight, bias = rows[:, :-1], rows[:, -1]
        return (weight if self.bias or self.one is None else weight + bias[:, None] * self.one), bias


def read_circuit(
    init: AttentionInit, names: list[str], source: Mapping[str, Tensor], kept: tuple[int, ...] | None, biases: bool
) -> Circuit:
    """The attention of one layer from its tensors: query, key and value in one or three, and the output."""
    *inputs, output = names
    weight = torch.cat([read(source, name).float().cpu() for name in inputs])
    index = torch.arange(weight.shape[1]) if kept is None else torch.tensor(kept)
    bias = torch.zeros(len(weight), 1)
    bias_names = [name.removesuffix("weight") + "bias" for name in inputs]
    if biases and all(name in source for name in bias_names):
        bias = torch.cat([read(source, name).float().cpu() for name in bias_names])[:, None]
    rows = torch.cat([weight[:, index], bias], 1)
    groups = init.kv_heads or init.heads
    head_dim = len(rows) // (init.heads + 2 * groups)
    q, k, v = rows.split([init.heads * head_dim, groups * head_dim, groups * head_dim])
    o, o_bias = read(source, output).float().cpu()[index], output.removesuffix("weight") + "bias"
    shift = read(source, o_bias).float().cpu()[index] if o_bias in source else torch.zeros(len(index))
    return Circuit(q, k, v, o, shift)


def constant_direction(layer: int, norms: Mapping[str, Tensor]) -> Tensor | None:
    """The w with w.h = 1 for every output h = gamma n + beta of a LayerNorm: w = c / gamma, because sum(n) = 0."""
    gamma, beta = (norms.get(f"blocks.{layer}.norm1.{leaf}") for leaf in ("weight", "bias"))
    if gamma is None or beta is None:
        return None
    inverse = 1.0 / gamma.double()
    one = inverse / (inverse @ beta.double())
    # a direction this steep would amplify rounding, and every later change of the norm
    return one.float() if bool(one.isfinite().all()) and float(one.norm()) < 30.0 else None


def expand_heads(init: AttentionInit, rows: Tensor) -> Tensor:
    """Key or value rows, once per query head that reads them."""
    groups = init.kv_heads or init.heads
    return rows.unflatten(0, (groups, -1)).repeat_interleave(init.heads // groups, 0).flatten(0, 1)
