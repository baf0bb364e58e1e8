"""Random scans for the tests of the native backend, and the reference's answers to them in float64."""

import torch
from torch import Tensor

from transmamba.ops.scan import native, reference
from transmamba.ops.scan.inputs import ScanInputs

FLOATS = ("u", "dt", "A", "B", "C", "D", "dt_bias", "initial_state")
# relative, in the 2-norm; half types pay one rounding of their results
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def problem(batch=2, k=3, length=37, dim=5, state=7, *, shared=(), own_u=False, without=(), time_first=False, **flags):
    """Draw the inputs; `shared` names parameters that all directions share, `without` optional inputs left out."""

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    def sequence(directions, width):
        if time_first:
            return draw(batch, directions, width, length).transpose(-1, -2)
        return draw(batch, directions, length, width)

    own = {name: 1 if name in shared else k for name in ("dt", "A", "B", "C", "D", "dt_bias")}
    inputs = {
        "u": sequence(k if own_u else 1, dim),
        "dt": sequence(own["dt"], dim),
        "A": -torch.exp(0.5 * draw(own["A"], state, dim)),
        "B": sequence(own["B"], state),
        "C": sequence(own["C"], state),
        "D": draw(own["D"], dim),
        "dt_bias": draw(own["dt_bias"], dim) - 2,
        "orders": torch.stack([torch.randperm(length) for _ in range(k)]),
        "segments": torch.arange(length).mul(3).div(max(length, 1), rounding_mode="floor").repeat(batch, 1),
        "initial_state": draw(batch, k, state, dim),
    }
    return ScanInputs(**{n: x for n, x in inputs.items() if n not in without}, **({"softplus": True} | flags))


def cast(p: ScanInputs, dtype: torch.dtype) -> ScanInputs:
    """Cast activations to `dtype`, parameters to its compute dtype; layouts are kept."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    to = {n: getattr(p, n) for n in FLOATS if getattr(p, n) is not None}
    return p._replace(**{n: x.to(dtype if n in ("u", "dt", "B", "C") else compute) for n, x in to.items()})


def expected(p: ScanInputs, grad_y: Tensor, grad_last: Tensor) -> dict[str, Tensor]:
    """Compute outputs, last states and gradients of the reference in float64."""
    wide = cast(p, torch.float64)
    leaves = {n: getattr(wide, n).detach().clone().requires_grad_() for n in FLOATS if getattr(p, n) is not None}
    y, last = reference.run(wide._replace(**leaves))
    grads = torch.autograd.grad(
        (y, last), leaves.values(), (grad_y.double(), grad_last.double()), materialize_grads=True
    )
    return {"y": y.detach(), "last": last.detach(), **dict(zip(leaves, grads, strict=True))}


def computed(p: ScanInputs, grad_y: Tensor, grad_last: Tensor | None, variant: str | None = None) -> dict[str, Tensor]:
    """Compute the same by the native backend."""
    y, last, saved = native.forward(p, True, variant=variant)
    found = native.backward(p, saved, grad_y, grad_last, variant=variant)._asdict()
    return {"y": y, "last": last, **{n: x for n, x in found.items() if x is not None}}


def gradients_of_outputs(p: ScanInputs) -> tuple[Tensor, Tensor]:
    """Draw random gradients, in the dtypes of the outputs; that of y lies in memory as u does."""
    batch, k, length, dim, state = p.sizes
    grad_y = torch.randn(batch, 1 if p.merge else k, length, dim).to(p.u.dtype)
    if p.u.stride(-2) == 1 and p.u.stride(-1) != 1:
        grad_y = grad_y.transpose(-1, -2).contiguous().transpose(-1, -2)
    return grad_y, torch.randn(batch, k, state, dim).to(p.A.dtype)


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float, least: float = 0.0) -> None:
    """Check the relative error of each entry in the 2-norm; entries below `least` may be rests of larger terms."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        error, size = (got[name].double() - value).norm(), value.norm()
        assert error <= tolerance * max(size, least) + 1e-30, (
            f"{name}: relative error {error / size:.1e}, allowed {tolerance:.0e}"
        )


def check(p: ScanInputs, dtype: torch.dtype = torch.float64, variant: str | None = None, *, least: float = 0.0) -> None:
    """Compare outputs, last states and all gradients of the native backend with the reference."""
    p = cast(p, dtype)
    grads = gradients_of_outputs(p)
    got = computed(p, *grads, variant)
    for name in FLOATS:
        assert name not in got or got[name].dtype == getattr(p, name).dtype
    assert_close(got, expected(p, *grads), TOLERANCE[dtype], least)
