"""Runs the CUDA sources on a CPU: g++ compiles the very files, emulate.cpp gives them threads."""

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from transmamba.ops.scan.nvrtc import compiler
from transmamba.ops.scan.nvrtc.variants import FLAGS, Variant

HERE = Path(__file__).parent
KERNELS = {
    "scan_forward": 0, "summarise": 1, "summarise_adjoint": 2, "chain": 3, "chain_adjoint": 4, "scan_backward": 0,
}  # fmt: skip
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here, which compiles the kernels")


@functools.cache
def folder() -> Path:
    """Return the folder of compiled files, kept between runs until a source changes."""
    texts = [*compiler.sources().values(), (HERE / "emulate.cpp").read_text()]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"transmamba-emulator-{digest}"
    path.mkdir(exist_ok=True)
    return path


@functools.cache
def library(options: tuple[str, ...]) -> ctypes.CDLL:
    path = folder() / f"{hashlib.sha256(' '.join(options).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as place:
            made = Path(place) / "made.so"
            command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", "-w", *options, f"-I{compiler.SOURCES}"]
            subprocess.run([*command, "-o", made, HERE / "emulate.cpp"], check=True)
            made.replace(path)
    return ctypes.CDLL(str(path))


def launch(variant: Variant, name: str, what, arguments, device, *, seed: int = 0) -> None:
    """Stand in for `nvrtc.launch`; with a seed, threads run in a random order between barriers."""
    assert device.type == "cpu" and arguments.flags == variant.bits
    # flags are looked up at run time, so variants that differ in them share a library
    options = tuple(option for option in variant.options if option[2:].split("=")[0] not in FLAGS)
    grid = (ctypes.c_int * 3)(*what.grid)
    assert library(options).emulate(KERNELS[name], ctypes.byref(arguments), grid, seed) == 0, "threads wait in vain"
