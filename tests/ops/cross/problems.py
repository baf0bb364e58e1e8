"""Random cross scans for the tests of the compiled backends, and the reference's answers to them in float64."""

import torch
from torch import Tensor

from transmamba.ops.cross import reference
from transmamba.ops.cross.inputs import CrossGradients, CrossInputs

FLOATS = CrossGradients._fields


def problem(
    batch=2, k=2, length=37, queries=11, dim=5, state=7, *, shared=(), without=(), time_first=False, one_token=False,
    softplus=True, merge=False, dtype=torch.float64,
) -> CrossInputs:  # fmt: skip
    """Draw inputs, activations in `dtype`; `shared` names those that all directions share, `without` those left out."""
    own = {name: 1 if name in shared else k for name in FLOATS}
    compute = torch.float64 if dtype == torch.float64 else torch.float32

    def sequence(directions: int, rows: int, width: int) -> Tensor:
        x = torch.randn(batch, directions, rows, width, dtype=torch.float64).to(dtype)
        return x.mT.contiguous().mT if time_first else x

    dt = sequence(own["dt"], length, dim)
    reads = torch.randint(0, max(length, 1), (batch, 1 if one_token else queries)).expand(-1, queries)
    return CrossInputs(
        sequence(own["u"], length, dim),
        dt - 1 if softplus else 0.3 * dt.abs(),
        -torch.exp(0.5 * torch.randn(own["A"], state, dim, dtype=compute)),
        sequence(own["B"], length, state),
        sequence(own["C"], queries, state),
        None if "dt_bias" in without else 0.3 * torch.randn(own["dt_bias"], dim, dtype=compute).abs(),
        None if "orders" in without else torch.stack([torch.randperm(length) for _ in range(k)]),
        reads,
        softplus,
        merge,
    )


def gradients_of_outputs(p: CrossInputs) -> tuple[Tensor, Tensor]:
    """Draw random gradients, in the dtypes of the outputs."""
    batch, k, _, dim, state = p.sizes
    grad_y = torch.randn(batch, 1 if p.merge else k, p.C.shape[2], dim).to(p.u.dtype)
    return grad_y, torch.randn(batch, k, state, dim).to(p.A.dtype)


def expected(p: CrossInputs, grad_y: Tensor | None, grad_last: Tensor | None) -> dict[str, Tensor]:
    """Compute outputs, last states and gradients of the reference in float64."""
    leaves = {n: getattr(p, n).double().requires_grad_() for n in FLOATS if getattr(p, n) is not None}
    y, last = reference.run(p._replace(**leaves))
    outputs = [(x, g) for x, g in ((y, grad_y), (last, grad_last)) if g is not None]
    # a leaf that nothing depends on has a gradient of zero
    loss = sum((x * g.double()).sum() for x, g in outputs) + sum(0.0 * x.sum() for x in leaves.values())
    grads = torch.autograd.grad(loss, leaves.values())
    return {"y": y.detach(), "last": last.detach(), **dict(zip(leaves, grads, strict=True))}


def compare(p: CrossInputs, backend, tolerance: float, *, without_gradient: str = "", least: float = 0.0, **options):
    """Compare outputs, last states and all gradients of a backend with the reference, relative in the 2-norm."""
    y, last, saved = backend.forward(p, True, **options)
    grad_y, grad_last = gradients_of_outputs(p)
    grad_y, grad_last = (None if n == without_gradient else g for n, g in (("y", grad_y), ("last", grad_last)))
    found = backend.backward(p, saved, grad_y, grad_last, **options)._asdict()
    got = {"y": y, "last": last, **{n: x for n, x in found.items() if x is not None}}
    want = expected(p, grad_y, grad_last)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        assert name in ("y", "last") or got[name].dtype == getattr(p, name).dtype, name
        error, size = (got[name].double() - value).norm(), value.norm()
        assert error <= tolerance * max(size, least) + 1e-30, f"{name}: relative error {error / size:.1e}"
