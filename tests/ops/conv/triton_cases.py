"""The Triton convolution against torch's; collected by test_triton.py, in a process of its own."""

import pytest
import torch
import torch.nn.functional as F

from transmamba.ops import causal_conv1d, scan_orders
from transmamba.ops.conv import triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def exact(x, weight, bias, silu, reverse):
    x = x.flip(1) if reverse else x
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    y = F.conv1d(padded, weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2)
    y = y.flip(1) if reverse else y
    return F.silu(y) if silu else y


def inputs(batch=2, length=37, dim=5, width=4, with_bias=True, dtype=torch.float32):
    draw = lambda *shape: torch.randn(*shape, device=DEVICE).to(dtype)  # noqa: E731
    return draw(batch, length, dim), draw(dim, width), draw(dim) if with_bias else None


def compare(x, weight, bias, silu, reverse):
    y = triton.conv_forward(x, weight, bias, silu, reverse)
    grad_y = torch.randn_like(y)
    grads = triton.conv_backward(x, weight, bias, silu, reverse, grad_y)
    leaves = [v.double().requires_grad_() for v in (x, weight, bias) if v is not None]
    y_exact = exact(leaves[0], leaves[1], leaves[2] if bias is not None else None, silu, reverse)
    expected = (y_exact, *torch.autograd.grad(y_exact, leaves, grad_y.double()))
    got = (y, *(g for g in grads if g is not None))
    assert (grads[2] is None) == (bias is None)
    for a, b, like in zip(got, expected, (x, x, weight, bias), strict=False):
        assert a.shape == like.shape and a.dtype == like.dtype
        assert (a.double() - b.detach()).norm() < TOLERANCE[x.dtype] * b.detach().norm()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_agrees_with_torch(width, silu, reverse):
    compare(*inputs(width=width, with_bias=silu), silu, reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_only_what_storing_loses(dtype):
    compare(*inputs(dtype=dtype), True, False)


def test_sequence_shorter_than_the_kernel():
    compare(*inputs(length=2), True, True)


def test_several_blocks_of_channels_and_time():
    compare(*inputs(batch=1, length=67, dim=71), True, False)


def test_takes_and_returns_the_layout_with_time_innermost():
    x, weight, bias = inputs()
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert triton.conv_forward(x, weight, bias, True, False).stride(1) == 1
    compare(x, weight, bias, True, False)


def test_reverse_is_the_flipped_convolution_of_the_flipped_sequence():
    x, weight, bias = inputs()
    flipped = triton.conv_forward(x.flip(1), weight, bias, True, False).flip(1)
    torch.testing.assert_close(triton.conv_forward(x, weight, bias, True, True), flipped)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"length": 0}])
def test_empty_sequences_have_empty_answers(sizes):
    x, weight, bias = inputs(**sizes)
    y = triton.conv_forward(x, weight, bias, True, False)
    dx, dweight, dbias = triton.conv_backward(x, weight, bias, True, False, y)
    assert y.shape == dx.shape == x.shape and not dweight.any() and not dbias.any()


def test_the_public_convolution_gives_what_plain_torch_gives():
    x, (weight, bias) = (
        inputs(length=7)[0],
        (torch.stack(t) for t in zip(*(inputs()[1:] for _ in range(2)), strict=True)),
    )
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    orders = scan_orders(["backward", (3, 1, 4, 0, 6, 5, 2)], 7, DEVICE)
    results = []
    for backend in ("triton", "reference"):
        y = causal_conv1d(leaves[0], leaves[1], leaves[2], orders=orders, activation="silu", backend=backend)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_accepts_what_it_computes():
    x, weight, _ = inputs()
    assert triton.conv_reasons(x, weight) == []
