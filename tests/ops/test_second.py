"""Derivatives of derivatives are those of the reference on every backend, for every op that has backends."""

import pytest
import torch

from tests.ops.rounding import BY_BACKEND, Draw
from tests.ops.scan.test_scan import accepting
from transmamba.ops import multi_scan


def derivatives(case, backend, order, dtype=torch.float64):
    """Compute gradients of a functional of the gradients, `order` deep, for every input."""
    torch.manual_seed(0)
    function, inputs, options = case(Draw(dtype, "cpu"), backend=backend)
    inputs = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.items()}
    outputs = [function(**inputs, **options)]
    for _ in range(order):
        loss = sum((torch.randn(x.shape, dtype=dtype) * x**2).sum() for x in outputs)
        outputs = torch.autograd.grad(loss, list(inputs.values()), create_graph=True)
    return dict(zip(inputs, outputs, strict=True))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("backend", accepting())
@pytest.mark.parametrize("case", BY_BACKEND, ids=[case.__name__ for case in BY_BACKEND])
def test_every_order_is_that_of_the_reference(case, backend, order):
    got, expected = (derivatives(case, name, order) for name in (backend, "reference"))
    for name, value in expected.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9 * value.abs().max().item(), msg=name)


@pytest.mark.parametrize("backend", accepting())
def test_one_tensor_for_two_arguments_counts_once_for_each(backend):
    def second(name):
        u = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 1, 4, 3).requires_grad_()
        B = torch.ones(1, 1, 4, 2, dtype=torch.float64)
        y = multi_scan(u, u, -torch.ones(1, 3, 2, dtype=torch.float64), B, B, backend=name)
        (first,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
        return torch.autograd.grad(first.square().sum(), u)[0]

    torch.testing.assert_close(second(backend), second("reference"))
