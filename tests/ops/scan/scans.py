"""Inputs for scan tests: every argument of `multi_scan`, random, in a mapping from name to tensor."""

import torch


def inputs(batch=2, k=3, length=37, dim=5, state=7, *, shared=1, own=None, dtype=torch.float64):
    """Draw inputs; `shared` is the direction axis of u, `own` that of dt, A, D and dt_bias."""
    own = own or k

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype)

    tensors = {
        "u": draw(batch, shared, length, dim),
        "dt": draw(batch, own, length, dim),
        "A": -torch.rand(own, dim, state, dtype=dtype) - 0.1,
        "B": draw(batch, k, length, state),
        "C": draw(batch, k, length, state),
        "D": draw(own, dim),
        "dt_bias": draw(own, dim),
        "initial_state": draw(batch, k, dim, state),
    }
    return {name: x.requires_grad_() for name, x in tensors.items()}


def run(scan, tensors, **options):
    """Compute outputs, last states, and for every tensor the gradient of a fixed random functional of both."""
    y, last = scan(**tensors, return_last_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (y, last)]
    loss = (y * weights[0]).sum() + (last * weights[1]).sum()
    grads = torch.autograd.grad(loss, list(tensors.values()))
    return {"y": y, "last": last, **{f"grad {name}": g for name, g in zip(tensors, grads, strict=True)}}


def assert_same(got, expected, **tolerances):
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **tolerances, msg=lambda m, name=name: f"{name}: {m}")
