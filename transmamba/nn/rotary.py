"""Rotary positions: pairs of channels turned by angles that grow with the position of the token."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from transmamba._typing import check_sizes
from transmamba.ops.orders import Grid

Rope = Mapping[str, Any]

_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "axial": ("grid",),
}


class Rotary:
    """Turn channel i and i + width / 2 of a head by position times frequency i.

    Args:
        rope: as `rope_parameters` of transformers: `rope_theta`, `rope_type` (default, linear, llama3, yarn), the
            numbers of that type, and `partial_rotary_factor`, the share of the channels that turn (the first ones).
            With `interleaved` channels 2 i and 2 i + 1 are a pair.
            "axial" is the one of DINOv3: the last tokens are those of `grid`, each turned by its row and its column;
            the tokens before them are left alone.
        head_dim: channels of a head.

    Raises:
        ValueError: the type is unknown, one of its numbers is missing or of another kind, or the channels that turn
            are not pairs (of pairs, for "axial").

    Reference:
        RoFormer, arXiv 2104.09864; YaRN, arXiv 2309.00071; DINOv3, arXiv 2508.10104.
    """

    def __init__(self, rope: Rope, head_dim: int) -> None:
        check_sizes(head_dim=head_dim)
        kind = rope.get("rope_type", "default")
        if kind not in _KEYS:
            raise ValueError(f"rope_type must be one of {', '.join(_KEYS)}, got {kind!r}")
        missing = [key for key in ("rope_theta", *_KEYS[kind]) if rope.get(key) is None]
        if missing:
            raise ValueError(f"rope of type {kind} needs {missing[0]}, got only {', '.join(rope)}")
        self.rope = dict(rope)
        self.grid: Grid | None = None
        if kind == "axial":
            self.grid = _grid(rope["grid"])
        share = 1.0 if rope.get("partial_rotary_factor") is None else _number(rope, "partial_rotary_factor")
        self.rope, self.width = dict(rope), int(head_dim * share)
        pairs = 4 if self.grid else 2
        if not 0 < self.width <= head_dim or self.width % pairs or (self.grid and self.width != head_dim):
            raise ValueError(
                f"rotary positions turn groups of {pairs} channels, got {self.width} of the {head_dim} of a head"
            )
        frequencies, self.amplitude = _frequencies(rope, self.width)
        # numbers instead of a buffer, which a change of dtype would round and a start on the meta device would lose
        self.frequencies = tuple(frequencies.tolist())

    def angles(self, positions: Tensor) -> Tensor:
        """Return the angles of the tokens at these positions, (..., token, width / 2), at least in float32.

        Raises:
            ValueError: the tokens are fewer than the cells of the grid.
        """
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device=positions.device)
        if self.grid is None:
            return positions[..., None] * frequencies
        prefix = positions.shape[-1] - math.prod(self.grid)
        if prefix < 0:
            raise ValueError(f"rotary positions are for a grid of {self.grid}, got {positions.shape[-1]} tokens")
        sides = [(torch.arange(n, device=positions.device) + 0.5) / n * 2 - 1 for n in self.grid]
        places = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, -2)
        turns = (2 * math.pi * places[..., None] * frequencies).flatten(1)
        return torch.cat([turns.new_zeros(prefix, turns.shape[1]), turns])

    def phases(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the angles, times the amplitude, (..., 1, token, width / 2)."""
        angles = self.angles(positions).unsqueeze(-3)
        cos, sin = angles.cos(), angles.sin()
        if self.amplitude != 1.0:
            cos, sin = cos * self.amplitude, sin * self.amplitude
        return cos.to(dtype), sin.to(dtype)

    def turn(self, x: Tensor, phases: tuple[Tensor, Tensor]) -> Tensor:
        """Turn queries or keys (batch, head, token, channel) by the phases of their tokens."""
        cos, sin = phases
        if self.rope.get("interleaved"):
            first, second = x[..., : self.width].unflatten(-1, (-1, 2)).unbind(-1)
            turned = [torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)]
        else:
            first, second = x[..., : self.width].chunk(2, -1)
            turned = [first * cos - second * sin, second * cos + first * sin]
        return torch.cat([*turned, x[..., self.width :]] if self.width < x.shape[-1] else turned, -1)


def _grid(sides: Any) -> Grid:
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise ValueError(f"grid of the rope must be rows and columns, got {sides!r}")
    check_sizes(rows=sides[0], columns=sides[1])
    return tuple(sides)


def _number(rope: Rope, key: str) -> float:
    value = rope[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key} of the rope must be a positive number, got {value!r}")
    return float(value)


def _frequencies(rope: Rope, width: int) -> tuple[Tensor, float]:
    """Return angles per position, (width / 2,), and the factor of sine and cosine, as transformers computes them."""
    theta, kind = _number(rope, "rope_theta"), rope.get("rope_type", "default")
    if kind == "axial":
        return 1 / theta ** torch.arange(0, 1, 4 / width, dtype=torch.float32, device="cpu"), 1.0
    plain = 1 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
    scale: dict[str, Callable[[Rope, Tensor], tuple[Tensor, float]]] = {"llama3": _llama3, "yarn": _yarn}
    if kind in scale:
        return scale[kind](rope, plain)
    return (plain / _number(rope, "factor") if kind == "linear" else plain), 1.0


def _llama3(rope: Rope, plain: Tensor) -> tuple[Tensor, float]:
    """Divide the frequencies of long waves by the factor and keep those of short ones, with a ramp in between."""
    factor, low, high = (_number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = _number(rope, "original_max_position_embeddings")
    turns = context * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / factor + kept * plain, 1.0


def _yarn(rope: Rope, plain: Tensor) -> tuple[Tensor, float]:
    """Divide frequencies of few turns in the original context by the factor, with a ramp over their numbers."""
    factor, context = _number(rope, "factor"), _number(rope, "original_max_position_embeddings")
    width, theta = 2 * len(plain), _number(rope, "rope_theta")

    def place(turns: float) -> float:
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (place(rope.get(key) or default) for key, default in (("beta_fast", 32), ("beta_slow", 1)))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (torch.arange(len(plain), device="cpu") - low) / ((high - low) or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return plain / factor * (1 - kept) + plain * kept, _yarn_amplitude(rope, factor)


def _yarn_amplitude(rope: Rope, factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return _number(rope, "attention_factor")

    def growth(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0

    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    return growth(mscale) / growth(all_dim) if mscale and all_dim else growth(1)
