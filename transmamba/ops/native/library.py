"""The compiled library: its structures, its threads, and one function to run a scan with it."""

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

PATH = Path(__file__).with_name("libscan.so")
# looked up once: torch.compile cannot trace a look at the disk
BUILT = PATH.exists()
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_INT = ctypes.c_int64


class Array(ctypes.Structure):
    """`Array` of scan.h."""

    _fields_ = [("data", ctypes.c_void_p), *((n, _INT) for n in ("dtype", "batch", "direction", "row", "column"))]


_SIZES = ("batch", "directions", "length", "channels", "state", "chunk", "part")
_CHOICES = ("wide", "softplus", "by_step", "together")
_INPUTS = ("u", "dt", "B", "C", "A", "D", "bias", "initial")
_OUTPUTS = ("y", "last", "saved", "grad_y", "grad_last", "du", "ddt", "dA", "dD", "dbias", "dinitial", "dB", "dC")


class Scan(ctypes.Structure):
    """`Scan` of scan.h."""

    _fields_ = [
        *((n, _INT) for n in (*_SIZES, *_CHOICES)),
        *((n, ctypes.c_void_p) for n in ("orders", "segments")),
        *((n, Array) for n in (*_INPUTS, *_OUTPUTS)),
        *((n, _INT) for n in ("dB_part", "dC_part")),
    ]


class Cross(Scan):
    """`Cross` of scan.h."""

    _fields_ = [("queries", _INT), ("queue", ctypes.c_void_p), ("first", ctypes.c_void_p), ("readout", Array)]


class Conv(ctypes.Structure):
    """`Conv` of scan.h."""

    _fields_ = [
        *((n, _INT) for n in ("batch", "directions", "length", "channels", "width", "part", "wide", "silu")),
        *((n, ctypes.c_void_p) for n in ("orders", "segments")),
        *((n, Array) for n in ("x", "before", "y", "grad_y", "weight", "bias", "dx", "dbefore", "dweight", "dbias")),
    ]


def array(x: Tensor | None, *axes: int | None) -> Array:
    """Describe `x`, its axes of batch, direction, row and column named by number; an axis of size 1 is shared."""
    if x is None:
        return Array()
    shape, strides, columns = x.shape, x.stride(), x.dim() - 1
    steps = [0 if axis is None or shape[axis] == 1 and axis != columns else strides[axis] for axis in axes]
    return Array(x.data_ptr(), DTYPES[x.dtype], *steps)


def available() -> bool:
    """Check whether the package was built with the library."""
    return BUILT


@functools.cache
def _library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(PATH))
    loaded.variant_name.restype = ctypes.c_char_p
    loaded.variant_name.argtypes = [_INT]
    for function in (loaded.run_scan, loaded.run_conv, loaded.run_cross):
        function.restype, function.argtypes = _INT, [ctypes.c_void_p, _INT, _INT, _INT, ctypes.c_void_p]
    loaded.orders_are_permutations.restype = _INT
    loaded.orders_are_permutations.argtypes = [ctypes.c_void_p, _INT, _INT]
    _owner()
    return loaded


# the process that loaded the library, remembered by its first call
_owner = functools.cache(os.getpid)


@functools.cache
def variants() -> tuple[str, ...]:
    """List the instruction sets of the library that this machine runs, the fastest first."""
    names: list[str] = []
    while name := _library().variant_name(len(names)):
        names.append(name.decode())
    return tuple(names)


def are_permutations(orders: Tensor) -> bool:
    """Check whether every row of (directions, length) holds each token once."""
    return bool(_library().orders_are_permutations(orders.data_ptr(), *orders.shape))


def fresh(x: Tensor) -> Tensor:
    """Place `x`, just allocated, on large pages if the system has them: first touches are then cheap."""
    _library().ask_for_large_pages(ctypes.c_void_p(x.data_ptr()), _INT(x.nbytes))
    return x


@functools.cache
def _team() -> int | None:
    """Find the address of `GOMP_parallel` in the OpenMP runtime that torch has loaded: one pool of threads for both."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def run(what: Scan | Conv, *, backward: bool, variant: str | None) -> None:
    """Run a scan, a cross scan or a convolution on torch's number of threads.

    Raises:
        MemoryError: no memory for the tiles of a thread.
    """
    chosen, loaded = variants().index(variant) if variant else 0, _library()
    # a team of OpenMP threads does not survive a fork; the library then starts threads of its own
    team = _team() if os.getpid() == _owner() else None
    cross = isinstance(what, Cross)
    function = loaded.run_cross if cross else loaded.run_scan if isinstance(what, Scan) else loaded.run_conv
    if not function(ctypes.byref(what), backward, chosen, torch.get_num_threads(), team):
        raise MemoryError("the native scan found no memory for its tiles: use fewer threads, torch.set_num_threads")
