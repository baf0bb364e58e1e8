"""The cross scan compiled for the CPU: queries read a state while it stands in registers (native.h)."""

from torch import Tensor

from transmamba.ops.cross.inputs import CrossGradients, CrossInputs, queue_of
from transmamba.ops.native.library import Array, Cross, array, fresh, run
from transmamba.ops.scan import native
from transmamba.ops.scan.native import CHUNK as CHUNK
from transmamba.ops.scan.native import describe, sum_buffer, sum_slots


def unsupported_reasons(inputs: CrossInputs) -> list[str]:
    """List the reasons not to run here: another device or dtype, or no library."""
    return native.token_reasons(inputs.u)


def forward(inputs: CrossInputs, save: bool, *, variant: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs, last states, and the states at chunk starts if `save`; `variant` forces an instruction set."""
    p, (batch, directions, length, channels, state) = inputs, inputs.sizes
    cross, _keep = _describe(p)
    # added to state by state
    y = p.A.new_zeros(batch, 1 if p.merge else directions, p.C.shape[2], channels)
    last = p.A.new_empty(batch, directions, state, channels)
    saved = fresh(p.A.new_empty((batch, directions, -(-length // CHUNK), state, channels) if save else 0))
    cross.y, cross.last = array(y, 0, 1, 2, 3), array(last, 0, 1, None, 3)
    if save:
        cross.saved = array(saved, 0, 1, 2, 4)
    run(cross, backward=False, variant=variant)
    return y.to(p.u.dtype), last, saved


def backward(
    inputs: CrossInputs,
    saved: Tensor,
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    *,
    variant: str | None = None,
) -> CrossGradients:
    """Return the gradients of every floating input, from those of the outputs and of the last states."""
    p, (batch, _, _, channels, _) = inputs, inputs.sizes
    cross, _keep = _describe(p)
    grad_last = None if grad_last is None else grad_last.contiguous()
    grad_y = None if grad_y is None else grad_y.to(p.A.dtype).contiguous()
    du, ddt = (sum_buffer(x, x.shape[1], cross) for x in (p.u, p.dt))
    # one slot per batch element or part of the channels, summed afterwards: the same result on any number of threads
    dA = p.A.new_zeros(batch, *p.A.shape)
    dbias = None if p.dt_bias is None else p.A.new_zeros(batch, *p.dt_bias.shape)
    parts = -(-channels // cross.part)
    dB, dC = p.A.new_empty(parts, *p.B.shape), p.A.new_zeros(parts, *p.C.shape)
    cross.saved, cross.grad_y, cross.grad_last = (
        array(saved, 0, 1, 2, 4),
        array(grad_y, 0, 1, 2, 3),
        array(grad_last, 0, 1, None, 3),
    )
    cross.du, cross.ddt = array(du, 0, 1, 2, 3), array(ddt, 0, 1, 2, 3)
    cross.dA, cross.dbias = array(dA, 0, 1, 2, 3), array(dbias, 0, 1, None, 2)
    cross.dB, cross.dC = array(dB, 1, 2, 3, 4), array(dC, 1, 2, 3, 4)
    cross.dB_part, cross.dC_part = dB.stride(0), dC.stride(0)
    run(cross, backward=True, variant=variant)
    du, ddt, dB, dC = (x.to(p.u.dtype) for x in (du, ddt, sum_slots(dB), sum_slots(dC)))
    return CrossGradients(du, ddt, sum_slots(dA), dB, dC, None if dbias is None else sum_slots(dbias))


def _describe(p: CrossInputs) -> tuple[Cross, list[Tensor | None]]:
    """Return the inputs by pointers, and the tensors that must outlive them."""
    cross, keep = describe(p.context, Cross)
    C = p.C.to(p.A.dtype).contiguous()
    queue, first = queue_of(p)
    # C has rows of its own, and every direction advances by itself
    cross.C, cross.together = Array(), False
    cross.queries, cross.readout = C.shape[2], array(C, 0, 1, 2, 3)
    cross.queue, cross.first = queue.data_ptr(), first.data_ptr()
    return cross, [*keep, C, queue, first]
