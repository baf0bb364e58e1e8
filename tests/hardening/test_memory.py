"""Kernels follow pointers: unfit tensors are refused before they run, whether annotations are checked or not."""

import subprocess
import sys

import pytest
import torch

from transmamba.ops import causal_conv1d, multi_scan, scan_order

# each of these read beyond a tensor once
MISFITS = {
    "rows of D": "multi_scan(u, u[:, None], A, B, B, torch.ones(2, 5), orders=scan_orders(['forward'] * 3, 7))",
    "an order of more tokens": "causal_conv1d(u, torch.ones(1, 5, 4), orders=scan_orders(['backward'], 70000))",
    "another batch": "multi_scan(u, u[:, None], A, B[:1], B)",
    "another number of states": "multi_scan(u, u[:, None], A, B, B[..., :1])",
    "another number of channels": "causal_conv1d(u, torch.ones(1, 50000, 4))",
    "another initial state": "multi_scan(u, u[:, None], A, B, B, initial_state=torch.ones(1, 1, 5, 3))",
}
PROGRAM = """
import torch
from transmamba.ops import causal_conv1d, multi_scan, scan_orders
u, A, B = torch.ones(2, 7, 5), -torch.ones(1, 5, 3), torch.ones(2, 1, 7, 3)
for call in {calls!r}:
    try:
        eval(call)
    except (ValueError, TypeError) as error:
        print(type(error).__name__, str(error).splitlines()[0])
    else:
        print("accepted", call)
"""


@pytest.mark.parametrize("check", ["0", "1"])
def test_misfits_end_in_errors_and_not_in_kernels(check, monkeypatch):
    monkeypatch.setenv("TRANSMAMBA_CHECK", check)
    program = PROGRAM.format(calls=list(MISFITS.values()))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(MISFITS) and "accepted" not in done.stdout, done.stdout


def test_numbers_of_packed_sequences_may_be_of_any_integer_type():
    torch.manual_seed(0)
    u, B, seq_idx = torch.randn(2, 7, 5), torch.randn(2, 1, 7, 3), torch.tensor([[0, 0, 0, 1, 1, 2, 2]] * 2)
    expected = multi_scan(u, u[:, None], -torch.ones(1, 5, 3), B, B, seq_idx=seq_idx)
    for dtype in (torch.int32, torch.int8):
        got = multi_scan(u, u[:, None], -torch.ones(1, 5, 3), B, B, seq_idx=seq_idx.to(dtype))
        assert torch.equal(got, expected)


def test_an_order_that_is_none_is_named():
    x = torch.ones(1, 3, 2)
    with pytest.raises(TypeError, match=r"orders\[1\] is None: expected a ScanOrder|orders"):
        causal_conv1d(x, torch.ones(2, 2, 2), orders=[scan_order("forward", 3), None])


def test_an_empty_sequence_has_an_empty_convolution_on_every_backend():
    for backend in ("auto", "reference"):
        assert causal_conv1d(torch.ones(2, 0, 3), torch.ones(1, 3, 4), backend=backend).shape == (2, 1, 0, 3)
