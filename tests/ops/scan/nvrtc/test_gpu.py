"""The CUDA kernels on a card, with the cases of the Triton kernels."""

import pytest
import torch

from tests.ops.scan.nvrtc.test_emulated import compare
from tests.ops.scan.triton.triton_cases import FEATURES, problem
from transmamba.ops.scan import nvrtc

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or bool(nvrtc.unavailable()),
        reason="; ".join(nvrtc.unavailable()) or "no GPU here",
    ),
]


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())
def test_agrees_with_the_reference_on_the_card(options):
    compare(problem(**options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("states", [1, 2, 8, 16, 64, 256])
def test_takes_any_number_of_states_and_dtype_on_the_card(states, dtype):
    compare(problem(n=states, d=70, k=2, length=45, segments=True, initial=True, dtype=dtype))


def test_one_long_sequence_is_split_into_spans_on_the_card():
    compare(problem(n=16, d=64, k=1, length=1000, orders=False, initial=True))


@pytest.mark.parametrize("states", [1, 16])
def test_compiles_as_one_node_on_the_card(states):
    from transmamba.ops import multi_scan

    p = problem(n=states, d=32, k=2, length=21)
    given = (p.u[:, 0], p.dt, p.A.mT, p.B, p.C)
    scan = lambda *x: multi_scan(*x, orders=p.orders, softplus=True, backend="nvrtc")  # noqa: E731
    torch.testing.assert_close(torch.compile(scan, fullgraph=True)(*given), scan(*given))
