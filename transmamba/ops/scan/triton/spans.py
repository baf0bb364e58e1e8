"""Time split into spans: how much each span adds and forgets, then the state at the start of each.

A scan over a span is the affine map  state -> decay * state + gain.  Spans are summarised side by side, the maps
are composed one after another, and the scan itself then runs on all spans at once. The adjoint runs the same way,
from the last span to the first.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

from transmamba.ops.scan.triton.steps import decay_of, load_constants, place, read, rows, tile_masks


@triton.jit
def summarise_spans(
    x, dt, A, M, bias, orders, restart, decay, gain,
    x_at, dt_at, M_at, A_at, bias_at,
    K, L, channels, states, span,
    PART: tl.constexpr, Q: tl.constexpr, N: tl.constexpr, W: tl.constexpr, ADJOINT: tl.constexpr,
    SHARED: tl.constexpr, SOFTPLUS: tl.constexpr, BY_STEP: tl.constexpr,
):  # fmt: skip
    """Write decay (b, 1|k, spans, n, d) and gain (b, k, spans, n, d).

    `x` and `M` are u and B, of the adjoint grad_y and C.
    """
    batch, k, k_decay, d = place(tl.program_id(1), K, Q, W, SHARED)
    segment, segments = tl.program_id(2), tl.num_programs(2)
    n = tl.arange(0, N)
    on, on_decay, on_parameter, on_state = tile_masks(k, d, n, K, channels, states)
    on_A = on_decay[:, None, :] & (n < states)[None, :, None]
    nd = (n * channels)[None, :, None] + d[:, None, :]
    bk = batch * K + k
    A2, shift, skip = load_constants(A, bias, None, A_at, bias_at, 0, k, k_decay, d, nd, on, on_decay, on_A)
    x_of, M_of = rows(x, x_at, batch, k, d), rows(M, M_at, batch, k, n[None, :])
    dt_of = rows(dt, dt_at, batch, k_decay, d)

    h = tl.zeros(on_state.shape, tl.float32)
    total = tl.zeros(on_decay.shape, tl.float32)
    intact = tl.full(k_decay.shape, 1.0, tl.float32)
    stop = tl.minimum((segment + 1) * span, L)
    for done in range(0, stop - segment * span, PART):
        steps = ()
        for i in tl.static_range(PART):
            # the adjoint starts at the end of the span, filled up to a multiple of PART
            t = segment * span + (tl.cdiv(stop - segment * span, PART) * PART - 1 - done - i if ADJOINT else done + i)
            step = read(
                t, x_of, dt_of, M_of, x_at[2], dt_at[2], M_at[2], orders, restart, shift,
                bk, k, k_decay, on, on_decay, on_parameter, K, L, SOFTPLUS, BY_STEP,
            )  # fmt: skip
            steps = steps + (step,)
        for i in tl.static_range(PART):
            x_t, dt_t, M_t, fresh = steps[i][0], steps[i][1], steps[i][3], steps[i][4]
            kept = decay_of(dt_t, A2, fresh, restart)
            if ADJOINT:
                h = kept * (h + x_t[:, None, :] * M_t[:, :, None])
            else:
                h = kept * h + (dt_t * x_t)[:, None, :] * M_t[:, :, None]
            total += dt_t
            if restart is not None:
                intact = tl.where(fresh, 0.0, intact)
    at = bk * segments + segment
    decay_at = batch * segments + segment + 0 * k_decay if SHARED else at
    kept = tl.where(intact[:, None, None] == 0, 0.0, tl.exp2(total[:, None, :] * A2))
    tl.store(gain + (at * states * channels)[:, None, None] + nd, h, mask=on_state)
    tl.store(decay + (decay_at * states * channels)[:, None, None] + nd, kept, mask=on_A)


@triton.jit
def chain_spans(
    decay, gain, start, border, K, spans, size,
    BLOCK: tl.constexpr, ADJOINT: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Write border (b, k, spans, n, d): the state before each span, or the adjoint after it."""
    bk = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    on = at < size
    h = tl.zeros([BLOCK], tl.float32)
    if start is not None:
        h = tl.load(start + bk * size + at, mask=on, other=0.0)
    for done in range(0, spans):
        s = spans - 1 - done if ADJOINT else done
        row = bk * spans + s
        tl.store(border + row * size + at, h, mask=on)
        decay_row = bk // K * spans + s if SHARED else row
        kept = tl.load(decay + decay_row * size + at, mask=on, other=0.0)
        h = kept * h + tl.load(gain + row * size + at, mask=on, other=0.0)
