"""Runs cases of the Triton kernels, interpreted where there is no GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="package triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
unless_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the same cases run compiled, in the gpu test")


def run_cases(beside: str, *files: str, marked: str = "not slow") -> None:
    # triton decides when it is imported whether kernels are interpreted, so the cases need a fresh process
    paths = [str(Path(beside).with_name(file)) for file in files]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, *paths]
    settings = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
