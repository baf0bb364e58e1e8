"""NVRTC through ctypes: CUDA C++ to a binary for one GPU architecture, without a toolkit, kept in a cache on disk."""

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "sources"
MAIN = "scan.cu"


class CompileError(RuntimeError):
    """NVRTC is missing, or rejects the kernels."""


@functools.cache
def sources() -> dict[str, str]:
    """Return the CUDA files by name, headers included."""
    return {path.name: path.read_text() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cu")}


def _candidates() -> Iterator[str]:
    """Yield places where libnvrtc may be: NVIDIA's wheels, which torch's CUDA builds need, then the loader's path."""
    found = importlib.util.find_spec("nvidia")
    for place in (found.submodule_search_locations or ()) if found else ():
        for pattern in ("*/lib/libnvrtc.so.*", "*/bin/nvrtc64_*.dll"):
            # the file beside it with the builtins of the compiler, and the alternative build, are not the library
            paths = sorted(Path(place).glob(pattern), reverse=True)
            yield from (str(path) for path in paths if "builtins" not in path.name and ".alt." not in path.name)
    yield from ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12")


@functools.cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """Return the library with its path, or None and why it cannot be had."""
    failures = []
    for name in _candidates():
        try:
            return ctypes.CDLL(name), name
        except OSError as error:
            failures.append(str(error))
    return None, (
        "NVRTC, NVIDIA's run-time compiler, was not found: install it with pip install nvidia-cuda-nvrtc-cu12 "
        f"(torch's CUDA builds bring it); tried {'; '.join(failures)}"
    )


def version() -> str:
    """Return the version of NVRTC as "12.9".

    Raises:
        CompileError: NVRTC was not found.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(_loaded(), "nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def _loaded() -> ctypes.CDLL:
    found, reason = library()
    if found is None:
        raise CompileError(reason)
    return found


def _call(found: ctypes.CDLL, name: str, *arguments: object) -> None:
    code = getattr(found, name)(*arguments)
    if code:
        found.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(f"{name} failed with {found.nvrtcGetErrorString(code).decode()}")


def compile_cubin(options: Sequence[str], capability: str) -> bytes:
    """Compile the kernels for an architecture, for instance "90".

    Raises:
        CompileError: NVRTC was not found or rejects the source or the architecture; the message has its log.
    """
    found, files = _loaded(), dict(sources())
    program, main = ctypes.c_void_p(), files.pop(MAIN)
    count = len(files)
    texts = (ctypes.c_char_p * count)(*(text.encode() for text in files.values()))
    names = (ctypes.c_char_p * count)(*(name.encode() for name in files))
    _call(found, "nvrtcCreateProgram", ctypes.byref(program), main.encode(), MAIN.encode(), count, texts, names)
    try:
        given = [f"--gpu-architecture=sm_{capability}", "--std=c++17", "--device-as-default-execution-space", *options]
        encoded = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        try:
            _call(found, "nvrtcCompileProgram", program, len(given), encoded)
        except CompileError as error:
            log = _read(found, program, "nvrtcGetProgramLog").decode(errors="replace").rstrip("\0")
            first = "\n".join(log.splitlines()[:20])
            raise CompileError(f"{error} for sm_{capability} with {' '.join(options)}\n{first}") from None
        return _read(found, program, "nvrtcGetCUBIN")
    finally:
        found.nvrtcDestroyProgram(ctypes.byref(program))


def _read(found: ctypes.CDLL, program: ctypes.c_void_p, name: str) -> bytes:
    size = ctypes.c_size_t()
    _call(found, f"{name}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(found, name, program, text)
    return text.raw


def cache_folder() -> Path:
    """Return the folder of compiled kernels: below XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "transmamba" / "nvrtc"


def cached_cubin(options: Sequence[str], capability: str) -> bytes:
    """Compile as `compile_cubin`, or read the cache if the same NVRTC compiled the same source with the same options.

    Processes may compile at the same time: each writes a file of its own, and renaming replaces the entry in one step.
    A cache that cannot be written is done without.
    """
    parts = [*sources().values(), *options, capability, version()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = cache_folder() / f"{key}.cubin"
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        digest, binary = content[:32], content[32:]
        if hashlib.sha256(binary).digest() == digest:
            return binary
    binary = compile_cubin(options, capability)
    with contextlib.suppress(OSError):
        _replace(path, hashlib.sha256(binary).digest() + binary)
    return binary


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
