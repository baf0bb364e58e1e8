import sys
import types

import pytest
import torch

from tests.ops.rounding import BY_BACKEND, HALVES, check
from tests.ops.scan.scans import inputs
from transmamba.ops import multi_scan, scan_order, selective_scan
from transmamba.ops.dispatch import TABLE, Backend
from transmamba.ops.scan import cuda
from transmamba.ops.scan.inputs import ScanInputs


@pytest.fixture
def problem():
    x = torch.zeros(1, 1, 3, 2, device="meta")
    return ScanInputs(x, x, torch.zeros(1, 5, 2), torch.zeros(1, 1, 3, 5), torch.zeros(1, 1, 3, 5))


@pytest.fixture
def kernel(monkeypatch):
    """Put a stand-in with mamba-ssm's signature on top of our reference; append `cuda` to the table."""

    def selective_scan_fn(*args, return_last_state):
        out, last = selective_scan(*args, return_last_state, backend="reference")
        return out, last.detach()

    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    cuda.load.cache_clear()
    accepting = Backend("cuda", cuda.run, lambda problem: [])
    others = tuple(b for b in TABLE["scan"] if b.name != "cuda")
    monkeypatch.setitem(TABLE, "scan", (*others, accepting))
    yield
    cuda.load.cache_clear()


@pytest.mark.parametrize("own", [1, 3])
@pytest.mark.parametrize("options", [{}, {"merge": True}, {"parameters_by_step": True}, {"orders": None}])
def test_adapter_agrees_with_reference(kernel, own, options):
    tensors = inputs(own=own)
    del tensors["initial_state"]
    options = {"orders": torch.stack([torch.randperm(37) for _ in range(3)]), "softplus": True, **options}

    expected = multi_scan(**tensors, return_last_state=True, backend="reference", **options)
    got = multi_scan(**tensors, return_last_state=True, backend="cuda", **options)
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(expected[0])
    torch.testing.assert_close(
        torch.autograd.grad((got[0] * weight).sum(), list(tensors.values())),
        torch.autograd.grad((expected[0] * weight).sum(), list(tensors.values())),
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", [c for c in BY_BACKEND if "scan" in c.__name__ and "cross" not in c.__name__])
def test_half_precision_is_rounded_once(kernel, case, dtype):
    check(case, dtype, backend="cuda")


def test_gradient_of_the_last_state_is_refused_loudly(kernel):
    tensors = inputs(2, 1, 5, 3, 2)
    del tensors["initial_state"]
    _, last = multi_scan(**tensors, return_last_state=True, backend="cuda")
    with pytest.raises(NotImplementedError, match='no gradient for the last state: use backend="triton"'):
        last.sum().backward()


def test_second_derivatives_are_refused_loudly(kernel):
    tensors = inputs(2, 1, 5, 3, 2)
    del tensors["initial_state"]
    y = multi_scan(**tensors, backend="cuda")
    with pytest.raises(
        NotImplementedError, match="no second derivatives, which create_graph=True asks for: use backend"
    ):
        torch.autograd.grad(y.sum(), tensors["u"], create_graph=True)


def test_other_devices_are_refused_without_importing_anything(problem):
    assert cuda.unsupported_reasons(problem) == ["needs a CUDA tensor, u is on meta"]
    assert "mamba_ssm" not in sys.modules


def test_a_kernel_that_does_not_load_is_a_reason_not_a_crash(monkeypatch):
    cuda.load.cache_clear()
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    found, reason = cuda.load()
    assert found is None
    assert "ModuleNotFoundError" in reason and "MAMBA_KEEP_CUDA_BUILD=TRUE" in reason
    cuda.load.cache_clear()


def test_what_the_kernel_cannot_do_is_said(monkeypatch, kernel, problem):
    monkeypatch.setattr(ScanInputs, "sizes", (1, 1, 3, 2, 300))

    class OnGpu:
        type = "cuda"

    u = types.SimpleNamespace(device=OnGpu(), dtype=torch.float64, numel=lambda: 0)
    reasons = cuda.unsupported_reasons(problem._replace(u=u, segments=torch.zeros(1, 3)))
    assert reasons == [
        "computes in float32, u is float64",
        "knows neither packed sequences nor an initial state",
        "takes 1 to 256 states per channel, got 300",
        "takes no empty tensor",
    ]


@pytest.mark.gpu
def test_the_real_kernel_agrees_with_reference():
    pytest.importorskip("mamba_ssm")
    tensors = {k: v.detach().cuda().requires_grad_() for k, v in inputs(dtype=torch.float32).items()}
    del tensors["initial_state"]
    orders = [scan_order("forward", 37, "cuda"), scan_order("backward", 37, "cuda"), scan_order("forward", 37, "cuda")]
    expected, got = (multi_scan(**tensors, orders=orders, softplus=True, backend=b) for b in ("reference", "cuda"))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    grads = [torch.autograd.grad(y.square().sum(), list(tensors.values())) for y in (got, expected)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
