import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.interpreter import needs_gpu, needs_triton, run_cases, unless_gpu
from transmamba.ops import triton as shared
from transmamba.ops.scan import triton
from transmamba.ops.scan.inputs import ScanInputs


@needs_triton
@unless_gpu
def test_scan_cases_pass_in_the_interpreter():
    run_cases(__file__, "triton_cases.py", "triton_rounding_cases.py")


@pytest.mark.slow
@needs_triton
@unless_gpu
def test_longer_scan_cases_pass_in_the_interpreter():
    run_cases(__file__, "triton_cases.py", "triton_rounding_cases.py", marked="slow")


@pytest.mark.gpu
@needs_triton
@needs_gpu
def test_scan_cases_pass_on_the_gpu():
    run_cases(__file__, "triton_cases.py", "triton_rounding_cases.py", marked="slow or not slow")


def small(dtype=torch.float32, states=2) -> ScanInputs:
    sequence, parameter = torch.zeros(1, 1, 3, 5, dtype=dtype), torch.zeros(1, 1, 3, states, dtype=dtype)
    return ScanInputs(sequence, sequence, torch.zeros(1, states, 5), parameter, parameter)


@needs_triton
def test_refuses_a_cpu_tensor_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr(shared, "INTERPRETED", False)
    assert triton.unsupported_reasons(small()) == ["needs a CUDA tensor, u is on cpu"]


def test_says_that_triton_is_missing(monkeypatch):
    monkeypatch.setattr(shared, "INSTALLED", False)
    assert triton.unsupported_reasons(small())[0] == "package triton is not installed"


@needs_triton
def test_refuses_float64_and_empty_states(monkeypatch):
    monkeypatch.setattr(shared, "INTERPRETED", True)
    assert triton.unsupported_reasons(small(torch.float64)) == ["computes in float32 and does not take float64"]
    assert triton.unsupported_reasons(small(states=0)) == ["needs at least one state"]


def test_importing_the_library_does_not_import_triton():
    code = "import sys, transmamba.ops.scan.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4]).returncode == 0
