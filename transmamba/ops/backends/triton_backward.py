"""The backward scan in Triton: chunks from last to first, their states recomputed from the checkpoints."""

# mypy: ignore-errors
import triton
import triton.language as tl

from transmamba.ops.backends.triton_steps import (
    LOG2E,
    decay_of,
    load_constants,
    load_row,
    place,
    rows,
    step_size,
    tile_masks,
    visited,
)


@triton.jit
def advance(
    h, t, u_of, dt_of, B_of, u_row, dt_row, B_row, orders, restart, A2, shift, k, k_decay, bk, on, on_decay,
    on_parameter, K, L, SOFTPLUS: tl.constexpr, STEP_PARAMETERS: tl.constexpr,
):  # fmt: skip
    """The state after step t; steps past the end leave it as it is."""
    exists = t + 0 * k_decay < L
    token, decay_token, parameter_token = visited(tl.minimum(t, L - 1), orders, k, k_decay, K, L, STEP_PARAMETERS)
    u_t = load_row(u_of, u_row, token, on & exists)
    B_t = load_row(B_of, B_row, parameter_token, on_parameter & exists)
    dt_t, _ = step_size(load_row(dt_of, dt_row, decay_token, on_decay & exists) + shift, SOFTPLUS)
    decay = decay_of(dt_t, A2, restart, bk, t, L, exists)
    return tl.where(exists, decay * h + (dt_t * u_t)[:, None, :] * B_t[:, :, None], h)


@triton.jit
def over_rows(x, SHARED: tl.constexpr):
    """X summed over its rows if they are directions sharing a decay."""
    return tl.sum(x, axis=0)[None] if SHARED else x


@triton.jit
def over_channels(x, SHARED: tl.constexpr):
    """X [Q, N, W] summed over channels: [Q, N] if the rows are directions, else [1, N]."""
    x = tl.sum(x, axis=2)
    return x if SHARED else tl.sum(x, axis=0)[None]


@triton.jit
def scan_backward(
    u, dt, A, B, C, D, bias, orders, restart, saved, leave, grad_y,
    du, ddt, dA, dB, dC, dD, dbias, dstart,
    u_at, dt_at, B_at, C_at, A_at, D_at, bias_at, grad_y_at, du_at, ddt_at,
    K, L, channels, states, span,
    CHUNK: tl.constexpr, PART: tl.constexpr, Q: tl.constexpr, N: tl.constexpr, W: tl.constexpr,
    SHARED: tl.constexpr, SOFTPLUS: tl.constexpr, STEP_PARAMETERS: tl.constexpr,
):  # fmt: skip
    """Write du per direction, ddt per direction of the decay, and partial sums of all other gradients.

    dB and dC (blocks, b, k, l, n) are partial in the channels; dA (spans, b, 1|k, n, d), dD (spans, b, k, d) and
    dbias (spans, b, 1|k, d) in time and batch. `leave` (b, k, spans, n, d) holds the adjoints of the states at the
    ends of the spans; None is zero. The
    states of PART steps at a time are recomputed from the checkpoint before them and held in registers.
    """
    batch, k, k_decay, d = place(K, Q, W, SHARED)
    block, batches = tl.program_id(1), tl.num_programs(0) // (1 if SHARED else K)
    segment, segments = tl.program_id(2), tl.num_programs(2)
    n = tl.arange(0, N)
    on, on_decay, on_parameter, on_state = tile_masks(k, d, n, K, channels, states)
    on_A = on_decay[:, None, :] & (n < states)[None, :, None]
    nd = (n * channels)[None, :, None] + d[:, None, :]
    bk = batch * K + k
    size = states * channels
    A2, shift, skip = load_constants(A, bias, D, A_at, bias_at, D_at, k, k_decay, d, nd, on, on_decay, on_A)
    u_of, du_of, grad_y_of = (
        rows(u, u_at, batch, k, d),
        rows(du, du_at, batch, k, d),
        rows(grad_y, grad_y_at, batch, k, d),
    )
    dt_of, ddt_of = rows(dt, dt_at, batch, k_decay, d), rows(ddt, ddt_at, batch, k_decay, d)
    B_of, C_of = rows(B, B_at, batch, k, n[None, :]), rows(C, C_at, batch, k, n[None, :])
    part = (block * batches * K + bk) * L

    g = tl.zeros(on_state.shape, tl.float32)
    if leave is not None:
        g += tl.load(leave + ((bk * segments + segment) * size)[:, None, None] + nd, mask=on_state, other=0.0)
    dA_sum = tl.zeros(on_A.shape, tl.float32)
    dD_sum = tl.zeros(on.shape, tl.float32)
    dbias_sum = tl.zeros(on_decay.shape, tl.float32)

    begin = segment * span // PART
    end = tl.cdiv(tl.minimum((segment + 1) * span, L), PART)
    for back in range(0, end - begin):
        start = (end - 1 - back) * PART
        chunk = start // CHUNK
        mark = (bk * tl.cdiv(L, CHUNK) + chunk) * size
        h = tl.load(saved + mark[:, None, None] + nd, mask=on_state, other=0.0)
        for t in range(chunk * CHUNK, start):
            h = advance(
                h, t, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, restart, A2, shift,
                k, k_decay, bk, on, on_decay, on_parameter, K, L, SOFTPLUS, STEP_PARAMETERS,
            )  # fmt: skip
        held = (h,)
        for i in tl.static_range(PART - 1):
            h = advance(
                h, start + i, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, restart, A2, shift,
                k, k_decay, bk, on, on_decay, on_parameter, K, L, SOFTPLUS, STEP_PARAMETERS,
            )  # fmt: skip
            held = held + (h,)
        for i in tl.static_range(PART):
            t = start + PART - 1 - i
            exists = t + 0 * k_decay < L
            here = tl.minimum(t, L - 1)
            token, decay_token, parameter_token = visited(here, orders, k, k_decay, K, L, STEP_PARAMETERS)
            u_t = load_row(u_of, u_at[2], token, on & exists)
            grad_y_t = load_row(grad_y_of, grad_y_at[2], token, on & exists)
            B_t = load_row(B_of, B_at[2], parameter_token, on_parameter & exists)
            C_t = load_row(C_of, C_at[2], parameter_token, on_parameter & exists)
            raw = load_row(dt_of, dt_at[2], decay_token, on_decay & exists)
            dt_t, slope = step_size(raw + shift, SOFTPLUS)
            kept = decay_of(dt_t, A2, restart, bk, t, L, exists)
            carried = kept * held[PART - 1 - i]
            g += C_t[:, :, None] * grad_y_t[:, None, :]
            dC_t = (carried + (dt_t * u_t)[:, None, :] * B_t[:, :, None]) * grad_y_t[:, None, :]
            dB_t = g * (dt_t * u_t)[:, None, :]
            through_B = tl.sum(g * B_t[:, :, None], axis=1)
            through_decay = over_rows(g * carried, SHARED)
            ddt_t = tl.sum(through_decay * A2, axis=1) / LOG2E + over_rows(through_B * u_t, SHARED)
            dB_t, dC_t = over_channels(dB_t, SHARED), over_channels(dC_t, SHARED)
            ddt_t = tl.where(exists, ddt_t * slope, 0.0)
            du_t = dt_t * through_B + skip * grad_y_t
            dA_sum += tl.where(exists, through_decay * dt_t[:, None, :], 0.0)
            dD_sum += grad_y_t * u_t
            dbias_sum += ddt_t
            g = tl.where(exists, g * kept, g)
            row = ((part + parameter_token) * states)[:, None] + n[None, :]
            tl.store(dB + row, dB_t, mask=on_parameter & exists)
            tl.store(dC + row, dC_t, mask=on_parameter & exists)
            tl.store(du_of + (token * du_at[2])[:, None], du_t.to(du.dtype.element_ty), mask=on & exists)
            ddt_at_t = ddt_of + (decay_token * ddt_at[2])[:, None]
            tl.store(ddt_at_t, ddt_t.to(ddt.dtype.element_ty), mask=on_decay & exists)

    once = segment * batches + batch
    k_decays = 1 if SHARED else K
    tl.store(dA + ((once * k_decays + k_decay) * size)[:, None, None] + nd, dA_sum, mask=on_A)
    if dD is not None:
        tl.store(dD + ((once * K + k) * channels)[:, None] + d, dD_sum, mask=on)
    if dbias is not None:
        tl.store(dbias + ((once * k_decays + k_decay) * channels)[:, None] + d, dbias_sum, mask=on_decay)
    if segment == 0:
        tl.store(dstart + (bk * size)[:, None, None] + nd, g, mask=on_state)
