"""The CUDA driver through ctypes: loads compiled kernels and launches them on torch's current stream."""

import ctypes
import functools
from typing import NamedTuple

import torch

from transmamba.ops.scan.nvrtc.compiler import CompileError, cached_cubin

NAMES = ("libcuda.so.1", "nvcuda.dll")
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_WITHOUT_ASKING = 48 * 1024  # shared memory of a block that needs no attribute


class DriverError(RuntimeError):
    """The CUDA driver is missing, or reports an error."""


class Launch(NamedTuple):
    """Blocks of a launch, threads and bytes of dynamic shared memory of each."""

    grid: tuple[int, int, int]
    threads: int
    shared: int = 0


@functools.cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """Return the driver's library, or None and why it cannot be had."""
    for name in NAMES:
        try:
            return ctypes.CDLL(name), ""
        except OSError:
            continue
    return None, f"the NVIDIA driver was not found ({', '.join(NAMES)}): install it, or pass the GPU into the container"


def _call(name: str, *arguments: object) -> None:
    found, reason = library()
    if found is None:
        raise DriverError(reason)
    code = getattr(found, name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        found.cuGetErrorString(code, ctypes.byref(text))
        words = text.value.decode() if text.value else "no description"
        raise DriverError(f"the CUDA driver refused {name}: {words} (error {code})")


def _enter_context(device: int) -> None:
    """Make torch's context current in this thread, if none is."""
    current = ctypes.c_void_p()
    _call("cuCtxGetCurrent", ctypes.byref(current))
    if current.value:
        return
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(handle), device)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    _call("cuCtxSetCurrent", context)


def capability(device: int) -> str:
    """Compute capability of the device as NVRTC names it, for instance "90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


@functools.cache
def _function(options: tuple[str, ...], name: str, shared: int, device: int) -> ctypes.c_void_p:
    """Return the kernel `name` of a variant on a device, compiled if need be."""
    binary = cached_cubin(options, capability(device))
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuModuleLoadData", ctypes.byref(module), binary)
    _call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    if shared > _WITHOUT_ASKING:
        _call("cuFuncSetAttribute", function, _DYNAMIC_SHARED, shared)
    return function


@functools.cache
def trial(device: int) -> tuple[str, ...]:
    """List the reasons why nothing compiled here loads on the device; none if the sources without a kernel do."""
    try:
        with torch.cuda.device(device):
            _enter_context(device)
            module = ctypes.c_void_p()
            binary = cached_cubin(("-DDTYPE=0", "-DKIND=-1"), capability(device))
            _call("cuModuleLoadData", ctypes.byref(module), binary)
    except (CompileError, DriverError) as error:
        return (f"a trial on cuda:{device} failed: {error}",)
    return ()


def launch(
    options: tuple[str, ...], name: str, what: Launch, arguments: ctypes.Structure, device: torch.device
) -> None:
    """Run the kernel `name` of the variant with those options on torch's current stream.

    Raises:
        CompileError: NVRTC is missing, or does not compile the variant.
        DriverError: the driver is missing, or reports an error.
    """
    with torch.cuda.device(device):
        index = torch.cuda.current_device()
        _enter_context(index)
        function = _function(options, name, what.shared, index)
        stream = ctypes.c_void_p(torch.cuda.current_stream(index).cuda_stream)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        _call("cuLaunchKernel", function, *what.grid, what.threads, 1, 1, what.shared, stream, parameters, None)
