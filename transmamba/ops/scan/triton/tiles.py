"""The cut of a scan into programs for a GPU."""

from typing import Any, NamedTuple

import torch

from transmamba.ops.scan.inputs import ScanInputs

ENTRIES = 512  # states of a program; it is one warp, so that sums over channels do not leave a warp
WARPS = 8  # programs that a multiprocessor holds at once


class Tiles(NamedTuple):
    """The cut of a scan into programs: the tile of states of each, the span of time, and their number."""

    rows: int
    states: int
    width: int
    shared: bool
    span: int
    grid: tuple[int, int, int]
    turns: int  # launches of the backward, each of some of the blocks of channels

    @property
    def backward_grid(self) -> tuple[int, int, int]:
        """Programs of one launch of the backward: no more than fill the GPU, as each has its own sums of dB and dC."""
        return self.grid[0], -(-self.grid[1] // self.turns), self.grid[2]

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments of kernels that describe the cut."""
        return {"Q": self.rows, "N": self.states, "W": self.width, "SHARED": self.shared, "span": self.span}


def power(x: int) -> int:
    """Return the next power of two."""
    return 1 << (x - 1).bit_length()


def _shares_decay(p: ScanInputs) -> bool:
    same_steps = p.parameters_by_step or p.orders is None
    one_decay = p.dt.shape[1] == 1 and p.A.shape[0] == 1 and (p.dt_bias is None or p.dt_bias.shape[0] == 1)
    fits = 4 * power(p.directions) * power(p.A.shape[1]) <= ENTRIES
    return p.directions > 1 and fits and one_decay and same_steps and p.segments is None


def cut(p: ScanInputs, chunk: int) -> Tiles:
    """Cut into tiles of ENTRIES states, 16 per lane: as many as the registers of the backward allow."""
    batch, directions, length, channels, states = p.sizes
    shared = _shares_decay(p)
    rows = power(directions) if shared else 1
    width = max(1, min(ENTRIES // (rows * power(states)), 64, power(channels)))
    groups, blocks = batch if shared else batch * directions, -(-channels // width)
    wanted = programs(p.u.device)
    span = _span(chunk, length, wanted // (groups * blocks))
    spans = -(-length // span)
    parts = -(-blocks // max(1, round(groups * blocks * spans / wanted)))
    return Tiles(rows, power(states), width, shared, span, (groups, blocks, spans), -(-blocks // parts))


def programs(device: torch.device) -> int:
    """Count the programs of one warp that keep the device busy."""
    return WARPS * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _span(chunk: int, length: int, wanted: int) -> int:
    """Choose the length of each of about `wanted` spans of time, a multiple of `chunk`."""
    chunks = -(-length // chunk)
    # a second pass summarises the spans: not worth it for fewer than four, nor for short ones
    return chunk * (chunks if wanted < 4 else min(chunks, max(4, -(-chunks // wanted))))
