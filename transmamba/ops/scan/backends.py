"""The backends of the scan, fastest first."""

from typing import Any

from torch import Tensor

from transmamba.ops.custom_op import Operation, define
from transmamba.ops.dispatch import TABLE, Backend
from transmamba.ops.scan import chunked, cuda, native, nvrtc, reference, triton
from transmamba.ops.scan.inputs import ScanGradients, ScanInputs, output_dtype
from transmamba.ops.shapes import allocate


def states_at_chunks(inputs: Any, module: Any, save: bool) -> tuple[Tensor, Tensor]:
    """Return room for the last states of a scan or cross scan, and for those that a backend saves."""
    batch, directions, length, channels, state = inputs.sizes
    chunks = -(-length // module.CHUNK)
    shape = (batch, directions, chunks, state, channels) if save else (0,)
    return inputs.A.new_empty(batch, directions, state, channels), inputs.A.new_empty(shape)


def laid_out(x: Tensor, field: str) -> Tensor:
    """Return room for the gradient of a field: those of tokens keep the layout of their memory."""
    return allocate(x, x.shape[1]) if field in ("u", "dt") else x.new_empty(x.shape)


def _outputs(inputs: ScanInputs, module: Any, save: bool) -> tuple[Tensor, ...]:
    y = allocate(inputs.u, 1 if inputs.merge else inputs.directions, output_dtype(inputs))
    return y, *states_at_chunks(inputs, module, save)


_SCAN = Operation(
    "scan", ScanInputs, ScanGradients, "Tensor grad_y, Tensor? grad_last", _outputs, reference.run, laid_out=laid_out
)
TABLE["scan"] = (
    Backend("cuda", cuda.run, cuda.unsupported_reasons),
    *define(_SCAN, {"nvrtc": nvrtc, "triton": triton, "native": native, "chunked": chunked}),
    Backend("reference", reference.run, reference.unsupported_reasons),
)
