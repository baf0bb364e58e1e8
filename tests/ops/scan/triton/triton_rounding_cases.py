"""The Triton kernels round half precision once; collected by test_triton.py, in a process of its own."""

import pytest
import torch

from tests.ops.rounding import BY_BACKEND, HALVES, SIZES, check
from transmamba.ops.cross import triton as cross_triton
from transmamba.ops.scan import triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REFUSED = ("packed_conv1d", "continued_conv1d")


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["small", "whole"])
@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("case", [c for c in BY_BACKEND if c.__name__ not in REFUSED], ids=lambda case: case.__name__)
def test_results_are_rounded_once(monkeypatch, case, dtype, whole):
    # the interpreter takes milliseconds a step: a shorter chunk leaves two chunks, the first of two parts
    for module in () if whole else (triton, cross_triton):
        monkeypatch.setattr(module, "CHUNK", 2 * triton.PART)
    sizes = SIZES if whole else (1, 2 * triton.PART + 1)
    # the interpreter cuts the digits of a bfloat16 off where a GPU rounds
    cut = DEVICE == "cpu" and dtype == torch.bfloat16
    check(case, dtype, DEVICE, units=1.0 if cut else 0.5, sizes=sizes, backend="triton")
