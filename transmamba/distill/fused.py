"""Cosines of tokens in one kernel on a GPU, where plain operations would widen and keep a copy of every layer."""

import contextlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

# looked up once, as the scan's kernels do; in its interpreter Triton also takes CPU tensors
_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = _INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"


def fusible(x: Tensor, unit: Tensor) -> bool:
    """Check whether the kernel takes these; torch.compile fuses the plain operations itself, torch.func needs them."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    runs = _INTERPRETED or (_INSTALLED and x.device.type == "cuda")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    rows = x.stride(-1) == 1 and unit.stride(-1) == 1 and x.shape == unit.shape and x.device == unit.device
    return (
        runs and rows and x.numel() > 0 and x.dtype in dtypes and unit.dtype == torch.float32 and x.shape[-1] <= 16384
    )


class TokenCosine(torch.autograd.Function):
    """Cosine [batch token] of each token of x with a unit vector; x alone has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: Tensor, negligible: float) -> Tensor:
        """Compute the cosines; vectors shorter than `negligible` count as zero."""
        from transmamba.distill.cosine_kernels import cosine_forward

        cosine, inverse = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
        _launch(cosine_forward, x, unit, cosine, inverse, negligible=negligible)
        ctx.save_for_backward(x, unit, cosine, inverse)
        return cosine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Compute the gradient of x, in its dtype."""
        from transmamba.distill.cosine_kernels import cosine_backward

        x, unit, cosine, inverse = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        _launch(cosine_backward, x, unit, cosine, inverse, grad=grad.contiguous(), dx=dx)
        return dx, None, None


def _launch(kernel: Any, x: Tensor, unit: Tensor, cosine: Tensor, inverse: Tensor, **others: Any) -> None:
    batch, tokens, dim = x.shape
    strides = {"x_at": (x.stride(0), x.stride(1)), "unit_at": (unit.stride(0), unit.stride(1))}
    block = 1 << (dim - 1).bit_length()
    given = {"x": x, "unit": unit, "cosine": cosine, "inverse": inverse, "tokens": tokens, "dim": dim, "BLOCK": block}
    with torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext():
        kernel[(batch * tokens,)](**given, **strides, **others)
