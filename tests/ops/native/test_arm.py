"""The native scan on AArch64, cross-compiled and emulated, against the build for this machine."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from transmamba.ops.native import build, library

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
DRIVER = Path(__file__).with_name("arm.cpp")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not library.available(), reason="the package was built without the native library"),
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}"
    ),
]


def numbers(compiler: list[str], shared: Path, run: list[str], folder: Path) -> torch.Tensor:
    """Return the numbers that the driver prints with that library: (scan, output, sum and norm)."""
    program = folder / f"{compiler[0]}.driver"
    flags = ["-std=c++17", f"-I{build.SOURCES}", f"-Wl,-rpath,{shared.parent}"]
    subprocess.run([*compiler, *flags, str(DRIVER), str(shared), "-o", str(program)], check=True)
    lines = subprocess.run([*run, str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    return torch.tensor([[float(x) for x in line.split()] for line in lines], dtype=torch.float64).unflatten(1, (-1, 2))


def test_arm_gives_the_numbers_of_this_machine(tmp_path, monkeypatch):
    here = build.compiler()
    monkeypatch.setenv("CXX", COMPILER)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    build.compile_library(tmp_path / "libscan.so")
    there = numbers([COMPILER], tmp_path / "libscan.so", [EMULATOR, "-L", "/usr/aarch64-linux-gnu"], tmp_path)
    want = numbers(here, library.PATH, [], tmp_path)
    assert want.shape == (80, 10, 2) and want.isfinite().all()
    # sums cancel, so both are compared with the norm
    assert ((there - want).abs() <= 1e-5 * want[..., 1:]).all()
