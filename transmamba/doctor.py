"""Report installed packages and the backends that run here, and check that their results are right.

Run `python -m transmamba.doctor`; the exit code is 0 if every backend that accepts agrees with the reference.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from transmamba.ops import cross_scan, multi_scan, scan_orders, triton
from transmamba.ops.cross.inputs import CrossInputs
from transmamba.ops.dispatch import TABLE, Backend
from transmamba.ops.scan import cuda, nvrtc
from transmamba.ops.scan.inputs import ScanInputs

PACKAGES = (
    "torch",
    "einops",
    "jaxtyping",
    "beartype",
    "triton",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-nvrtc",
    "mamba-ssm",
    "causal-conv1d",
    "transformers",
)
TOLERANCE = 1e-3


def versions() -> Iterator[str]:
    """Yield one line per package."""
    yield f"python {platform.python_version()} on {platform.machine()}, {platform.system()}"
    for name in PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} not installed"


def devices() -> list[torch.device]:
    """List the CPU, and one accelerator if there is one."""
    names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [torch.device(name) for name in (*names, *(["mps"] if torch.backends.mps.is_available() else []))]


def case(device: torch.device) -> dict[str, Tensor]:
    """Make a small scan in two directions, float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (2, 23, 16), "dt": (2, 2, 23, 16), "A": (2, 16, 8), "B": (2, 2, 23, 8), "C": (2, 2, 23, 8)}
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].abs()
    return {name: x.to(device).requires_grad_() for name, x in tensors.items()}


def readers(device: torch.device) -> Tensor:
    """Return the tokens after which the readers of a cross scan read, for the same case."""
    return (torch.arange(2 * 23, device=device) * 7 % 23).view(2, 23)


def solve(backend: str, device: torch.device, *, cross: bool = False) -> list[Tensor]:
    """Compute outputs and gradients of the case."""
    tensors = case(device)
    orders = scan_orders(("forward", "backward"), 23, device)
    if cross:
        y = cross_scan(*tensors.values(), reads=readers(device), softplus=True, orders=orders, backend=backend)
    else:
        y = multi_scan(*tensors.values(), softplus=True, orders=orders, backend=backend)
    assert isinstance(y, Tensor)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(tensors.values()))]


def examine(backend: Backend, device: torch.device, *, cross: bool = False) -> tuple[bool, str]:
    """Check that the backend works on the device, or refuses it; also return a line with the result."""
    u, dt, A, B, C = case(device).values()
    tokens, A = u[:, None], A.mT
    plain = ScanInputs(tokens, dt, A, B, C)
    inputs = CrossInputs(*plain[:5], None, None, readers(device)) if cross else plain
    reasons = backend.unsupported_reasons(inputs)
    if reasons:
        return True, f"  {backend.name:10s} refuses: " + "; ".join(reasons)
    try:
        pairs = zip(*(solve(name, device, cross=cross) for name in (backend.name, "reference")), strict=True)
        error = max(float((got - want).norm() / want.norm()) for got, want in pairs)
    except Exception as failure:  # the report goes on, because the user came to learn which backends fail
        return False, f"  {backend.name:10s} FAILS: {type(failure).__name__}: {failure}"
    good = error < TOLERANCE
    return good, f"  {backend.name:10s} {'right' if good else 'WRONG'}, relative error {error:.1e}"


def on_a_gpu() -> Iterator[str]:
    """Name the backend for a scan on an NVIDIA GPU with this installation, and the reasons against faster ones."""
    missing = {
        "cuda": () if cuda.load()[0] is not None else (cuda.load()[1],),
        "nvrtc": nvrtc.unavailable(),
        "triton": () if triton.INSTALLED else ("package triton is not installed",),
    }
    chosen = next((name for name, reasons in missing.items() if not reasons), "chunked")
    yield f"a scan of bfloat16 on an NVIDIA GPU would run on {chosen} here, fastest first:"
    for name, reasons in missing.items():
        yield f"  {name:10s} {'; '.join(reasons) if reasons else 'found'}"


def main() -> int:
    """Print the report; the exit code."""
    print("\n".join(versions()))
    healthy = True
    for device in devices():
        for cross, table in ((False, TABLE["scan"]), (True, TABLE["cross scan"])):
            print(f"{'cross' if cross else 'selective'} scan on {device.type}, fastest first:")
            for backend in table:
                good, line = examine(backend, device, cross=cross)
                healthy &= good
                print(line)
    print("\n".join(on_a_gpu()))
    print("all that runs is right" if healthy else "something is wrong: see above")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
