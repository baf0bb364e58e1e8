import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transmamba.ops.backends import triton, triton_conv

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="package triton is not installed")


def run_cases() -> None:
    # triton decides when it is imported whether kernels are interpreted, so the cases need a fresh process
    cases = Path(__file__).with_name("triton_conv_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    settings = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the same cases run compiled, in the gpu test")
def test_convolution_cases_pass_in_the_interpreter():
    run_cases()


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_convolution_cases_pass_on_the_gpu():
    run_cases()


@needs_triton
def test_refuses_other_widths(monkeypatch):
    monkeypatch.setattr(triton, "INTERPRETED", True)
    reasons = triton_conv.conv_refuse(torch.zeros(1, 3, 2), torch.zeros(2, 5))
    assert reasons == ["needs a width of 2, 3 or 4, not 5"]
