"""The Triton kernels round half precision once; collected by test_triton.py, in a process of its own."""

import pytest
import torch

from tests.ops.rounding import BY_BACKEND, HALVES, check

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REFUSED = ("packed_conv1d", "continued_conv1d")


@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("case", [c for c in BY_BACKEND if c.__name__ not in REFUSED], ids=lambda case: case.__name__)
def test_results_are_rounded_once(case, dtype):
    # the interpreter cuts the digits of a bfloat16 off where a GPU rounds
    cut = DEVICE == "cpu" and dtype == torch.bfloat16
    check(case, dtype, DEVICE, units=1.0 if cut else 0.5, backend="triton")
