"""The scan of Mamba-3 (single input, single output): heads as in Mamba-2, the trapezoidal rule, rotating B and C.

With R_t the rotation of pairs of states by the sum of dt theta up to t, and 0 <= blend <= 1:

    H_t = a_t H_{t-1} + (1 - blend_t) dt_t a_t x_{t-1} (R_{t-1} B_{t-1})^T + blend_t dt_t x_t (R_t B_t)^T
    y_t = H_t R_t C_t + D x_t                                    a_t = exp(dt_t A_t)

A blend of 1 is the scan of Mamba-2 (Euler's rule), 1/2 the trapezoidal rule of second order.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transmamba._typing import typed
from transmamba.ops.plain import without_autocast
from transmamba.ops.shapes import compute_dtype
from transmamba.ops.ssd import scan_chunks

TURN = 2 * torch.pi


class TrapezoidState(NamedTuple):
    """The state carried from one token to the next; float32 or float64."""

    angle: Float[Tensor, "batch head pair"]
    state: Float[Tensor, "batch head channel state"]
    B: Float[Tensor, "batch head state"]  # of the last token, rotated
    x: Float[Tensor, "batch head channel"]  # of the last token


@typed
def trapezoidal_scan(
    x: Float[Tensor, "batch length head channel"],
    dt: Float[Tensor, "batch length head"],
    A: Float[Tensor, "batch length head"],
    B: Float[Tensor, "batch length head state"],
    C: Float[Tensor, "batch length head state"],
    blend: Float[Tensor, "batch length head"],
    theta: Float[Tensor, "batch length head pair"],
    D: Float[Tensor, " head"] | None = None,
    z: Float[Tensor, "batch length head channel"] | None = None,
    *,
    initial: TrapezoidState | None = None,
    seq_idx: Int[Tensor, "batch length"] | None = None,
    mask: Bool[Tensor, "batch length"] | None = None,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "batch length head channel"], TrapezoidState]:
    """Scan all heads over all tokens: outputs, and the state to go on from.

    The step sizes are final here (no bias, no softplus). Arithmetic and states are float32 (float64 if an argument
    is), the output has the dtype of `x`, rounded once.

    Args:
        x: input.
        dt: step sizes, positive.
        A: decay rates, negative; they vary with the token.
        B: input weights.
        C: readout weights.
        blend: share of this token's end of the trapezoid.
        theta: speeds of rotation; pair i is states 2 i and 2 i + 1, states beyond the last pair stand still.
        D: weight of the direct path.
        z: gate; the output is multiplied by `silu(z)`.
        initial: the state that an earlier scan left; nothing by default.
        seq_idx: number of the packed sequence each token belongs to; the state restarts where it changes.
        mask: True marks a real token. Padding may stand at either end of a sequence, its output is zero.
        chunk_size: tokens per matrix product; changes the speed, not the result.

    Raises:
        ValueError: `initial` is of other sizes than the tokens, there are more pairs than states, or `chunk_size` is
            below 1.
        TypeError: a part of `initial` is not a floating tensor.

    Reference:
        Mamba-3, arXiv 2603.15569; checked against the reference functions of mamba_ssm's tests.

    Example:
        >>> x, dt, B = torch.ones(1, 5, 2, 3), torch.ones(1, 5, 2), torch.ones(1, 5, 2, 4)
        >>> trapezoidal_scan(x, dt, -dt, B, B, 0.5 * dt, torch.ones(1, 5, 2, 1))[0].shape
        torch.Size([1, 5, 2, 3])
    """
    compute = compute_dtype(x, dt, A, B, C)
    given = x.dtype
    with without_autocast(x.device):
        x, dt, A, B, C, blend, theta = (t.to(compute) for t in (x, dt, A, B, C, blend, theta))
        if mask is not None:
            x, dt = x.masked_fill(~mask[..., None, None], 0.0), dt.masked_fill(~mask[..., None], 0.0)
        start = _nothing(x, B, theta) if initial is None else initial
        _check_sizes(start, x.new_empty(x.shape[0], *x.shape[2:]), B, theta)
        angle = _turned(start.angle, dt[..., None] * theta, seq_idx)
        B_turned, C_turned = rotate(B, angle), rotate(C, angle)
        # the part of this token that the next step adds: its own decay is part of the way there
        late = (1 - blend) * dt
        opening = late[:, 0] if late.shape[1] else late.sum(1)
        late = F.pad(late[:, 1:], (0, 0, 0, 1))[:, : late.shape[1]]
        if seq_idx is not None:
            late = late * F.pad(seq_idx[:, 1:] == seq_idx[:, :-1], (0, 1))[..., None]
        state = start.state + opening[..., None, None] * start.x[..., None] * start.B[:, :, None]
        early = blend * dt
        y, last = scan_chunks(x * (early + late)[..., None], dt * A, B_turned, C_turned, state, seq_idx, chunk_size)
        y = y - (late * (B * C).sum(-1))[..., None] * x
        y = y if D is None else y + D[:, None] * x
        y = y if z is None else y * F.silu(z.to(compute))
    y = y.to(given) if mask is None else y.to(given).masked_fill(~mask[..., None, None], 0.0)
    return y, _after(start, angle, last, B_turned, x, mask)


@typed
def trapezoidal_step(
    before: TrapezoidState,
    x: Float[Tensor, "batch head channel"],
    dt: Float[Tensor, "batch head"],
    A: Float[Tensor, "batch head"],
    B: Float[Tensor, "batch head state"],
    C: Float[Tensor, "batch head state"],
    blend: Float[Tensor, "batch head"],
    theta: Float[Tensor, "batch head pair"],
    D: Float[Tensor, " head"] | None = None,
    z: Float[Tensor, "batch head channel"] | None = None,
) -> tuple[Float[Tensor, "batch head channel"], TrapezoidState]:
    """Run one step of `trapezoidal_scan`: the output for one token, and the next state, in the dtypes of `before`.

    Raises:
        ValueError: `before` is of other sizes than the token, or there are more pairs than states.
        TypeError: a part of `before` is not a floating tensor.
    """
    _check_sizes(before, x, B, theta)
    compute, given = torch.promote_types(before.state.dtype, torch.float32), x.dtype
    kept, before = before, TrapezoidState(*(t.to(compute) for t in before))
    x, dt, A, B, C, blend, theta = (t.to(compute) for t in (x, dt, A, B, C, blend, theta))
    angle = before.angle + dt[..., None] * theta
    B, C, decay = rotate(B, angle), rotate(C, angle), torch.exp(dt * A)
    old = ((1 - blend) * dt * decay)[..., None, None] * before.x[..., None] * before.B[:, :, None]
    new = (blend * dt)[..., None, None] * x[..., None] * B[:, :, None]
    state = decay[..., None, None] * before.state + old + new
    y = einsum(state, C, "batch head channel state, batch head state -> batch head channel")
    y = y if D is None else y + D[:, None] * x
    y = y if z is None else y * F.silu(z.to(compute))
    after = TrapezoidState(angle.remainder(TURN), state, B, x)
    return y.to(given), TrapezoidState(*(new.to(old.dtype) for new, old in zip(after, kept, strict=True)))


def _turned(start: Tensor, turns: Tensor, seq_idx: Tensor | None) -> Tensor:
    """Return the angle after each token, less whole turns; it starts again, at zero, with every packed sequence.

    A sum over thousands of tokens is taken in float64: its digits before the point would cost those behind it.
    """
    exact = turns.dtype if turns.device.type == "mps" else torch.float64
    total = start[:, None].to(exact) + turns.to(exact).cumsum(1)
    if seq_idx is not None and seq_idx.shape[1]:
        before = F.pad(total[:, :-1], (0, 0, 0, 0, 1, 0))
        first = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
        step = torch.arange(seq_idx.shape[1], device=seq_idx.device)
        began = (step * first).cummax(1).values
        total = total - before.gather(1, began[..., None, None].expand_as(total))
    return total.remainder(TURN).to(turns.dtype)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of the last axis by `angle`; entries beyond the last pair stay."""
    pairs, still = x.tensor_split([2 * angle.shape[-1]], -1)
    first, second = pairs.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
    return torch.cat([turned.flatten(-2), still], -1)


def _check_sizes(before: TrapezoidState, token: Tensor, B: Tensor, theta: Tensor) -> None:
    (batch, heads, channels), states, pairs = token.shape, B.shape[-1], theta.shape[-1]
    if 2 * pairs > states:
        raise ValueError(f"{pairs} pairs cannot rotate among {states} states")
    shapes = ((pairs,), (channels, states), (states,), (channels,))
    for name, x, shape in zip(before._fields, before, shapes, strict=True):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name} of the state before is not a floating tensor")
        if x.shape != (batch, heads, *shape):
            raise ValueError(
                f"{name} of the state before has shape {tuple(x.shape)}: expected {(batch, heads, *shape)}"
            )


def _nothing(x: Tensor, B: Tensor, theta: Tensor) -> TrapezoidState:
    batch, _, heads, channels = x.shape
    shapes = ((theta.shape[-1],), (channels, B.shape[-1]), (B.shape[-1],), (channels,))
    return TrapezoidState(*(x.new_zeros(batch, heads, *shape) for shape in shapes))


def _after(
    start: TrapezoidState, angle: Tensor, state: Tensor, B: Tensor, x: Tensor, mask: Tensor | None
) -> TrapezoidState:
    if not x.shape[1]:
        return start
    if mask is None:
        return TrapezoidState(angle[:, -1], state, B[:, -1], x[:, -1])
    last = (mask * torch.arange(1, x.shape[1] + 1, device=x.device)).argmax(1)
    rows = torch.arange(x.shape[0], device=x.device)
    return TrapezoidState(angle[rows, last], state, B[rows, last], x[rows, last])
