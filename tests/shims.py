"""Small C libraries that change the system below Python, loaded by LD_PRELOAD."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest


def preload(source: Path, folder: Path) -> Path:
    """Compile `source` to a library for LD_PRELOAD; the test is skipped where there is no way to."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if platform.system() != "Linux":
        pytest.skip("LD_PRELOAD is a way of Linux")
    if compiler is None:
        pytest.skip("no C compiler for the library that injects the fault")
    library = folder / source.with_suffix(".so").name
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl", "-lpthread"], check=True
    )
    return library
