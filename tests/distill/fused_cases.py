"""The fused cosine against the plain one; collected by test_fused.py, in a process with Triton's interpreter."""

import pytest
import torch

from transmamba.distill import AdaptiveLayerDistill, fused, similarity
from transmamba.distill.similarity import cosine, unit_target

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def both(monkeypatch, run):
    """Compute the results of `run` fused, and in plain operations."""
    used = []
    apply = fused.TokenCosine.apply
    monkeypatch.setattr(fused.TokenCosine, "apply", lambda *x: (used.append(1), apply(*x))[1])
    first = run()
    assert used
    monkeypatch.setattr(similarity, "fusible", lambda x, unit: False)
    return first, run()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_the_plain_operations(monkeypatch, dtype, strided, masked):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 14, device=DEVICE).to(dtype)
    x = x[..., :7] if strided else x[..., :7].contiguous()
    mask = torch.arange(5, device=DEVICE).expand(2, 5) < 3 if masked else None
    unit = unit_target(torch.randn(2, 5, 7, device=DEVICE), "token", mask)
    leaf = x.detach().requires_grad_()

    def run():
        found = cosine(leaf, unit, "token", mask)
        return found.detach(), *torch.autograd.grad((found * torch.arange(1, 3, device=DEVICE)).sum(), leaf)

    for got, expected in zip(*both(monkeypatch, run), strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_vector_of_zeros_has_cosine_and_gradient_zero(monkeypatch):
    x = torch.zeros(1, 2, 3, device=DEVICE, requires_grad=True)
    found = cosine(x, torch.ones(1, 2, 3, device=DEVICE), "token", None)
    assert found == 0 and not torch.autograd.grad(found.sum(), x)[0].any()


def test_no_layer_is_copied_for_the_backward(monkeypatch):
    layers = [torch.randn(2, 50, 8, device=DEVICE).bfloat16().requires_grad_() for _ in range(3)]
    teacher = torch.randn(2, 50, 8, device=DEVICE)

    def kept():
        seen = {}

        def pack(x):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            AdaptiveLayerDistill()(layers, teacher)
        given = {x.untyped_storage().data_ptr() for x in layers}
        return sum(size for at, size in seen.items() if at not in given)

    got, plain = both(monkeypatch, kept)
    unit, layer, token = 2 * 50 * 8 * 4, 2 * 50 * 8 * 4, 2 * 50 * 4
    assert got <= unit + 3 * 3 * token + 1000
    assert plain >= unit + 3 * layer
