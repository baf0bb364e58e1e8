import pytest
import torch

from tests.ops.backends.cross_problems import problem
from tests.ops.backends.test_triton import needs_gpu, needs_triton, run_cases
from transmamba.ops.backends import triton_cross


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the same cases run compiled, in the gpu test")
def test_cross_scan_cases_pass_in_the_interpreter():
    run_cases("triton_cross_cases.py")


@pytest.mark.gpu
@needs_triton
@needs_gpu
def test_cross_scan_cases_pass_on_the_gpu():
    run_cases("triton_cross_cases.py")


@needs_triton
def test_refuses_what_the_plain_scan_refuses():
    assert triton_cross.refuse(problem(state=0)) == [
        "needs a CUDA tensor, u is on cpu",
        "computes in float32 and does not take float64",
        "needs at least one state",
    ]
