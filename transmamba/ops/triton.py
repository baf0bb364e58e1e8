"""The shared parts of the Triton kernels of all operations: whether they can run, and how they are launched."""

import contextlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

# looked up once: torch.compile traces neither a search for packages nor the environment
INSTALLED = importlib.util.find_spec("triton") is not None
# in its interpreter Triton also takes CPU tensors; it decides when it is imported
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def unmet(x: Tensor) -> list[str]:
    """List the unmet conditions for Triton to take x."""
    reasons = []
    if not INSTALLED:
        reasons.append("package triton is not installed")
    if x.device.type != "cuda" and not (INSTALLED and INTERPRETED):
        reasons.append(f"needs a CUDA tensor, u is on {x.device}")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        reasons.append(f"computes in float32 and does not take {str(x.dtype).removeprefix('torch.')}")
    return reasons


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, arguments: dict[str, Any], warps: int = 1) -> None:
    """Run a kernel on those of the arguments that it names."""
    named = {name: arguments[name] for name in kernel.arg_names}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        # fusion is asked for since Triton is about to change its default
        kernel[grid](**named, num_warps=warps, enable_fp_fusion=True)
