"""What is installed, which backends run here, and whether they compute the right thing.

Run `python -m transmamba.doctor`; the exit code is 0 if every backend that accepts agrees with the reference.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from transmamba.ops import multi_scan, scan_orders
from transmamba.ops.backends import BACKENDS, Backend
from transmamba.ops.backends.problem import Problem

PACKAGES = ("torch", "einops", "jaxtyping", "beartype", "triton", "mamba-ssm", "causal-conv1d", "transformers")
TOLERANCE = 1e-3


def versions() -> Iterator[str]:
    """One line per package."""
    yield f"python {platform.python_version()} on {platform.machine()}, {platform.system()}"
    for name in PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} not installed"


def devices() -> list[torch.device]:
    """The CPU, and one accelerator if there is one."""
    names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [torch.device(name) for name in (*names, *(["mps"] if torch.backends.mps.is_available() else []))]


def case(device: torch.device) -> dict[str, Tensor]:
    """A small scan in two directions, float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (2, 23, 16), "dt": (2, 2, 23, 16), "A": (2, 16, 8), "B": (2, 2, 23, 8), "C": (2, 2, 23, 8)}
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].abs()
    return {name: x.to(device).requires_grad_() for name, x in tensors.items()}


def solve(backend: str, device: torch.device) -> list[Tensor]:
    """Outputs and gradients of the case."""
    tensors = case(device)
    orders = scan_orders(("forward", "backward"), 23, device)
    y = multi_scan(*tensors.values(), softplus=True, orders=orders, backend=backend)
    assert isinstance(y, Tensor)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(tensors.values()))]


def examine(backend: Backend, device: torch.device) -> tuple[bool, str]:
    """Whether the backend is as it should be on the device (refusing is), and a line that says so."""
    u, dt, A, B, C = case(device).values()
    reasons = backend.refuse(Problem(u[:, None], dt, A.mT, B, C))
    if reasons:
        return True, f"  {backend.name:10s} refuses: " + "; ".join(reasons)
    try:
        pairs = zip(solve(backend.name, device), solve("reference", device), strict=True)
        error = max(float((got - want).norm() / want.norm()) for got, want in pairs)
    except Exception as failure:  # the report goes on: what does not run is what the user came to learn
        return False, f"  {backend.name:10s} FAILS: {type(failure).__name__}: {failure}"
    good = error < TOLERANCE
    return good, f"  {backend.name:10s} {'right' if good else 'WRONG'}, relative error {error:.1e}"


def main() -> int:
    """Print the report; the exit code."""
    print("\n".join(versions()))
    healthy = True
    for device in devices():
        print(f"selective scan on {device.type}, fastest first:")
        for backend in BACKENDS:
            good, line = examine(backend, device)
            healthy &= good
            print(line)
    print("all that runs is right" if healthy else "something is wrong: see above")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
