"""The backends of the convolution, fastest first; "chunked" and "reference" are both plain torch."""

from typing import Any

from torch import Tensor

from transmamba.ops.conv import native, reference, triton
from transmamba.ops.conv.inputs import ConvGradients, ConvInputs
from transmamba.ops.custom_op import Operation, define
from transmamba.ops.dispatch import TABLE, Backend


def _outputs(inputs: ConvInputs, module: Any) -> Tensor:
    return inputs.x.new_empty(inputs.x.shape[0], inputs.weight.shape[0], *inputs.x.shape[1:])


def _definition(inputs: ConvInputs) -> tuple[Tensor]:
    return (reference.run(inputs),)


_CONV = Operation("conv", ConvInputs, ConvGradients, "Tensor grad_y", _outputs, _definition, saves=False)
TABLE["convolution"] = (
    *define(_CONV, {"triton": triton, "native": native}),
    *(Backend(name, reference.run, reference.unsupported_reasons) for name in ("chunked", "reference")),
)
