"""Variants of the kernels: the definitions (-D) given to the compiler, and how a scan is cut into blocks."""

from typing import NamedTuple

import torch

from transmamba.ops.scan.inputs import ScanInputs

CHUNK = 8  # steps between two saved states, as in steps.h
MOST_STATES = 256
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
FLAGS = ("SOFTPLUS", "ORDERS", "BY_STEP", "RESTART", "PAIRED", "MERGED", "FULL", "ONE", "WIDE", "SAVE")  # bit 0, 1, ...
KINDS = ("forward", "backward", "single_forward", "single_backward", "shared_forward", "shared_backward")
MOST_SINGLE = 8  # directions that a block of the kernels for one state takes, half of them where shared memory is short


class Shape(NamedTuple):
    """The use of the lanes of a kernel, for a number of states."""

    lane_states: int  # states that a lane holds of each channel
    lane_channels: int
    warps: int
    steps: int  # staged in shared memory at a time
    part: int  # steps whose states the backward holds
    blocks: int  # resident on a multiprocessor: the compiler limits registers accordingly


# by the power of two that holds the states
FORWARD = {
    2: Shape(2, 1, 4, 8, 8, 4), 4: Shape(4, 1, 4, 8, 8, 4), 8: Shape(4, 1, 4, 16, 8, 5), 16: Shape(4, 1, 4, 16, 8, 6),
    32: Shape(4, 1, 4, 16, 8, 4), 64: Shape(8, 1, 4, 8, 8, 4), 128: Shape(16, 1, 4, 4, 8, 3),
    256: Shape(16, 1, 4, 4, 8, 3),
}  # fmt: skip
BACKWARD = {
    2: Shape(2, 2, 2, 8, 8, 6), 4: Shape(4, 2, 2, 8, 8, 4), 8: Shape(4, 2, 4, 8, 8, 3), 16: Shape(4, 2, 4, 8, 8, 3),
    32: Shape(4, 2, 4, 8, 8, 3), 64: Shape(8, 1, 4, 8, 4, 3), 128: Shape(16, 1, 2, 8, 2, 4),
    256: Shape(16, 1, 2, 8, 2, 4),
}  # fmt: skip
# of the kernels that take all directions at once, because they share step sizes and decays
SHARED_FORWARD = {8: Shape(4, 1, 4, 8, 8, 4), 16: Shape(4, 1, 4, 8, 8, 4), 32: Shape(4, 1, 4, 8, 8, 4)}
SHARED_BACKWARD = {8: Shape(4, 1, 4, 8, 4, 2), 16: Shape(4, 1, 4, 8, 4, 2), 32: Shape(4, 1, 2, 8, 4, 4)}
MOST_SHARED = 4  # directions of such a block


def power(x: int) -> int:
    """Return the next power of two."""
    return 1 << (x - 1).bit_length()


class Variant(NamedTuple):
    """One compilation of the sources."""

    kind: str
    dtype: int
    states: int
    shape: Shape
    flags: tuple[str, ...]
    directions: int = 1  # of a block

    @property
    def single(self) -> bool:
        """Whether it is one of the kernels for one state."""
        return self.kind.startswith("single")

    @property
    def scanning(self) -> int:
        """Warps of a block that scan; those of the kernel for one state take two directions, and others help to sum."""
        return (self.directions + 1) // 2 if self.kind == "single_forward" else self.shape.warps

    def groups(self, batch: int, directions: int) -> int:
        """Count the blocks along the first axis of the grid."""
        return batch * -(-directions // self.directions)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.shape.warps

    @property
    def channels(self) -> int:
        """Channels of a block."""
        if self.single:
            return 128 if self.kind == "single_forward" and self.directions == 1 else 64
        lanes = power(self.states) // self.shape.lane_states
        return 32 // lanes * self.shape.lane_channels * self.shape.warps

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory of a block, zero where the kernel declares its own; scan.cu checks them."""
        shape, n, pair = self.shape, power(self.states), 8 if self.dtype == 0 else 4
        if self.single:
            ring = (2 * 32 + 1) * 16 + 32 * 4  # as in single.h
            if self.kind == "single_backward":  # states, and two chunks of steps
                return shape.warps * (ring + 2 * 32 * 8 + 2 * CHUNK * 4 * 32 * pair)
            halves = self.scanning * (2 if self.directions > 1 else 1)
            rows = CHUNK * self.channels // 2 * pair + 64  # of a chunk of u or dt
            return halves * (ring + 2 * (4 if self.dtype else 2) * rows)
        if self.kind == "shared_backward":
            return self._shared_backward(n, pair)
        if self.kind != "backward":
            return 0
        copies = min(shape.lane_states, 32 // (n // shape.lane_states))
        tile = CHUNK * self.channels
        floats = 4 * tile + 2 * CHUNK * copies * n + 2 * CHUNK * (self.channels + 8) + 2 * CHUNK * shape.warps * n
        floats += shape.lane_states * shape.lane_channels * self.threads + 2 * CHUNK + 8 * self.threads
        floats += max(1, tile // 2 // self.threads) * self.threads  # pairs of a thread
        return 4 * floats + pair * (4 * tile // 2 + 2 * CHUNK * n // 2)

    def _shared_backward(self, n: int, pair: int) -> int:
        """Count the bytes of shared memory, as in shared_backward.h."""
        shape, k, kp, block, threads = self.shape, self.directions, power(self.directions), self.channels, self.threads
        copies = min(shape.lane_states, 32 // (n // shape.lane_states))
        floats = CHUNK * (2 * block * kp + (block + 1) * kp + 2 * block + block + 8)
        floats += 2 * CHUNK * k * n * (copies + shape.warps) + k * shape.lane_states * threads
        floats += 2 * k * threads + max(1, CHUNK * block // 2 // threads) * k * threads  # D, places
        return 4 * floats + pair * (CHUNK * block // 2 * (1 + 3 * k) + 2 * k * CHUNK * n // 2)

    def flagged(self, **flags: bool) -> "Variant":
        """Add the flags that are on."""
        return self._replace(flags=(*self.flags, *(name for name, on in flags.items() if on)))

    def merging(self) -> "Variant":
        """Return the variant whose blocks sum their directions, with twice the warps where too few would scan."""
        twice = self.shape._replace(warps=2 * self.scanning) if self.kind == "single_forward" else self.shape
        return self._replace(shape=twice).flagged(MERGED=True)

    @property
    def bits(self) -> int:
        """The flags as a number."""
        return sum(1 << FLAGS.index(flag) for flag in self.flags)

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the compiler."""
        names = ("LANE_STATES", "LANE_CHANNELS", "WARPS", "STEPS", "PART", "BLOCKS")
        values = {"KIND": KINDS.index(self.kind), "DTYPE": self.dtype, "STATES": self.states, "SHARED": self.shared}
        values["DIRECTIONS"] = self.directions
        values |= dict(zip(names, self.shape, strict=True)) | {flag: int(flag in self.flags) for flag in FLAGS}
        return tuple(f"-D{name}={value}" for name, value in values.items())


def flags_of(p: ScanInputs, tensors: list[torch.Tensor]) -> tuple[str, ...]:
    """Return the flags of inputs whose activations and their gradients, outputs included, are `tensors`."""
    _, _, _, channels, states = p.sizes
    given = {
        "SOFTPLUS": p.softplus,
        "ORDERS": p.orders is not None,
        "BY_STEP": p.parameters_by_step and p.orders is not None,
        "RESTART": p.segments is not None,
        "PAIRED": channels % 2 == 0
        and (states % 2 == 0 or states == 1)
        and all(_in_vectors(x, 2 * x.element_size()) for x in tensors if x.shape[3] > 1),
        "WIDE": states == 1
        and channels * p.u.element_size() % 16 == 0
        and all(_in_vectors(x, 16) for x in tensors if x.shape[3] > 1),
    }
    return tuple(name for name, on in given.items() if on)


def _in_vectors(x: torch.Tensor, size: int) -> bool:
    """Check whether every row begins at a multiple of `size` bytes and has its columns side by side."""
    steps = [step * x.element_size() for n, step in zip(x.shape[:3], x.stride()[:3], strict=True) if n > 1]
    return x.stride(3) == 1 and all(step % size == 0 for step in steps) and x.data_ptr() % size == 0


def shares_decay(p: ScanInputs) -> bool:
    """Check whether all directions have the same step size and decay at every step."""
    shared = (p.dt.shape[1] == p.A.shape[0] == 1) and (p.dt_bias is None or p.dt_bias.shape[0] == 1)
    return shared and (p.parameters_by_step or p.orders is None) and p.segments is None


def shared_variant_of(p: ScanInputs, kind: str, tensors: list[torch.Tensor]) -> Variant | None:
    """Pick the variant that takes all directions in a block, or None where it does not take the inputs."""
    states, shapes = power(p.A.shape[1]), SHARED_BACKWARD if kind == "backward" else SHARED_FORWARD
    if not (states in shapes and 1 < p.directions <= MOST_SHARED and shares_decay(p)):
        return None
    flags = tuple(flag for flag in flags_of(p, tensors) if flag != "BY_STEP")
    one = ("ONE",) if p.u.shape[1] == p.C.shape[1] == 1 else ()
    return Variant(f"shared_{kind}", DTYPES[p.u.dtype], p.A.shape[1], shapes[states], (*flags, *one), p.directions)


def single_variant(kind: str, dtype: int, directions: int, flags: tuple[str, ...]) -> Variant:
    """Pick the variant of the kernels for one state that takes so many directions, or as many as fit a block."""
    taken = min(directions, MOST_SINGLE // 2 if kind == "backward" and dtype == 0 else MOST_SINGLE)
    # a lane of the forward takes four channels
    warps, channels = ((taken + 1) // 2, 4) if kind == "forward" else (taken, 2)
    return Variant(f"single_{kind}", dtype, 1, Shape(1, channels, warps, CHUNK, CHUNK, 1), flags, taken)


def variant_of(p: ScanInputs, kind: str, tensors: list[torch.Tensor]) -> Variant:
    """Pick the variant of that kind, "forward" or "backward", that takes the inputs."""
    states, flags = p.A.shape[1], flags_of(p, tensors)
    if states == 1:
        return single_variant(kind, DTYPES[p.u.dtype], p.directions, flags)
    shapes = BACKWARD if kind == "backward" else FORWARD
    return Variant(kind, DTYPES[p.u.dtype], states, shapes[power(states)], flags)


def spans_of(variant: Variant, groups: int, length: int, channels: int, multiprocessors: int) -> tuple[int, int]:
    """Choose the steps of a span of time, and the number of spans, so that the blocks fill the GPU."""
    unit = 2 * CHUNK
    units = -(-length // unit)
    resident = 16 // variant.directions if variant.single else variant.shape.blocks
    wanted = resident * multiprocessors // (groups * -(-channels // variant.channels))
    # a second pass summarises the spans: not worth it for fewer than four, nor for short ones
    steps = unit * (units if wanted < 4 else min(units, max(4, -(-units // wanted))))
    return steps, -(-length // steps)
