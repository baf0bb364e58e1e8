import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transmamba.ops.backends import triton
from transmamba.ops.backends.problem import Problem

CASES = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="package triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")


def run_cases(file: str) -> None:
    # triton decides when it is imported whether kernels are interpreted, so the cases need a fresh process
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES / file)]
    settings = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the same cases run compiled, in the gpu test")
def test_scan_cases_pass_in_the_interpreter():
    run_cases("triton_cases.py")


@pytest.mark.gpu
@needs_triton
@needs_gpu
def test_scan_cases_pass_on_the_gpu():
    run_cases("triton_cases.py")


def small(dtype=torch.float32, states=2) -> Problem:
    sequence, parameter = torch.zeros(1, 1, 3, 5, dtype=dtype), torch.zeros(1, 1, 3, states, dtype=dtype)
    return Problem(sequence, sequence, torch.zeros(1, states, 5), parameter, parameter)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the same cases run compiled, in the gpu test")
def test_half_precision_is_rounded_once_in_the_interpreter():
    run_cases("triton_rounding_cases.py")


@pytest.mark.gpu
@needs_triton
@needs_gpu
def test_half_precision_is_rounded_once_on_the_gpu():
    run_cases("triton_rounding_cases.py")


@needs_triton
def test_refuses_a_cpu_tensor_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr(triton, "INTERPRETED", False)
    assert triton.refuse(small()) == ["needs a CUDA tensor, u is on cpu"]


def test_says_that_triton_is_missing(monkeypatch):
    monkeypatch.setattr(triton, "INSTALLED", False)
    assert triton.refuse(small())[0] == "package triton is not installed"


@needs_triton
def test_refuses_float64_and_empty_states(monkeypatch):
    monkeypatch.setattr(triton, "INTERPRETED", True)
    assert triton.refuse(small(torch.float64)) == ["computes in float32 and does not take float64"]
    assert triton.refuse(small(states=0)) == ["needs at least one state"]


def test_importing_the_library_does_not_import_triton():
    code = "import sys, transmamba.ops.backends.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
