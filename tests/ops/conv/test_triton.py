import pytest
import torch

from tests.ops.interpreter import needs_gpu, needs_triton, run_cases, unless_gpu
from transmamba.ops import triton as shared
from transmamba.ops.conv import triton


@needs_triton
@unless_gpu
def test_convolution_cases_pass_in_the_interpreter():
    run_cases(__file__, "triton_cases.py")


@pytest.mark.gpu
@needs_triton
@needs_gpu
def test_convolution_cases_pass_on_the_gpu():
    run_cases(__file__, "triton_cases.py")


@needs_triton
def test_refuses_other_widths(monkeypatch):
    monkeypatch.setattr(shared, "INTERPRETED", True)
    reasons = triton.conv_reasons(torch.zeros(1, 3, 2), torch.zeros(2, 5))
    assert reasons == ["needs a width of 2, 3 or 4, not 5"]
