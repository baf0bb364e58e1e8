"""The backends of the cross scan, fastest first."""

from typing import Any

from torch import Tensor

from transmamba.ops.cross import chunked, native, reference, triton
from transmamba.ops.cross.inputs import CrossGradients, CrossInputs
from transmamba.ops.custom_op import Operation, define
from transmamba.ops.dispatch import TABLE, Backend
from transmamba.ops.scan.backends import laid_out, states_at_chunks


def _outputs(inputs: CrossInputs, module: Any, save: bool) -> tuple[Tensor, ...]:
    batch, directions, _, channels, _ = inputs.sizes
    y = inputs.u.new_empty(batch, 1 if inputs.merge else directions, inputs.C.shape[2], channels)
    return y, *states_at_chunks(inputs, module, save)


_CROSS = Operation(
    "cross",
    CrossInputs,
    CrossGradients,
    "Tensor? grad_y, Tensor? grad_last",
    _outputs,
    reference.run,
    laid_out=laid_out,
)
TABLE["cross scan"] = (
    Backend("cuda", reference.run, lambda inputs: ["package mamba_ssm has no cross scan"]),
    *define(_CROSS, {"triton": triton, "native": native, "chunked": chunked}),
    Backend("reference", reference.run, reference.unsupported_reasons),
)
