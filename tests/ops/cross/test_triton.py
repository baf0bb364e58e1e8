import pytest

from tests.ops.cross.problems import problem
from tests.ops.interpreter import needs_gpu, needs_triton, run_cases, unless_gpu
from transmamba.ops.cross import triton


@needs_triton
@unless_gpu
def test_cross_scan_cases_pass_in_the_interpreter():
    run_cases(__file__, "triton_cases.py")


@pytest.mark.gpu
@needs_triton
@needs_gpu
def test_cross_scan_cases_pass_on_the_gpu():
    run_cases(__file__, "triton_cases.py")


@needs_triton
def test_refuses_what_the_plain_scan_refuses():
    assert triton.unsupported_reasons(problem(state=0)) == [
        "needs a CUDA tensor, u is on cpu",
        "computes in float32 and does not take float64",
        "needs at least one state",
    ]
