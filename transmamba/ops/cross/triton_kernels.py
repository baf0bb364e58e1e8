"""The cross scan in Triton: one program per batch entry, direction and block of channels; see `scan/triton/steps.py`.

A query is met right after the step whose state it reads: its C is loaded, and its y written, while the state stands
in registers. `queue` (b, k, q) and `first` (b, k, l + 1) are those of `queue_of`.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

from transmamba.ops.scan.triton.backward_kernel import replay
from transmamba.ops.scan.triton.steps import (
    LOG2E,
    advance,
    decay_of,
    load_constants,
    load_row,
    place,
    read,
    rows,
    tile_masks,
)


@triton.jit
def cross_forward(
    u, dt, A, B, C, bias, orders, queue, first, y, last, saved,
    u_at, dt_at, B_at, C_at, A_at, bias_at, y_at,
    K, L, queries, channels, states,
    CHUNK: tl.constexpr, N: tl.constexpr, W: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Write y (b, k, q, d), the last state and, if `saved` is given, the state before every CHUNK-th step."""
    scan = tl.program_id(0).to(tl.int64)
    batch, k, k_decay, d = place(tl.program_id(1), K, 1, W, False)
    n = tl.arange(0, N)
    on, on_decay, on_parameter, on_state = tile_masks(k, d, n, K, channels, states)
    nd = (n * channels)[None, :, None] + d[:, None, :]
    size = states * channels
    A2, shift, _ = load_constants(A, bias, None, A_at, bias_at, 0, k, k_decay, d, nd, on, on_decay, on_state)
    u_of, dt_of, y_of = rows(u, u_at, batch, k, d), rows(dt, dt_at, batch, k, d), rows(y, y_at, batch, k, d)
    B_of, C_of = rows(B, B_at, batch, k, n[None, :]), rows(C, C_at, batch, k, n[None, :])

    h = tl.zeros(on_state.shape, tl.float32)
    for t in range(0, L):
        if saved is not None:
            if t % CHUNK == 0:
                tl.store(saved + (scan * tl.cdiv(L, CHUNK) + t // CHUNK) * size + nd, h, mask=on_state)
        step = read(
            t, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, None, shift,
            scan, k, k_decay, on, on_decay, on_parameter, K, L, SOFTPLUS, False,
        )  # fmt: skip
        h = advance(h, step, A2, None)
        begin = tl.load(first + scan * (L + 1) + t)
        end = tl.load(first + scan * (L + 1) + t + 1)
        for i in range(begin, end):
            query = tl.load(queue + scan * queries + i) + 0 * k
            y_q = tl.sum(h * load_row(C_of, C_at[2], query, on_parameter)[:, :, None], axis=1)
            tl.store(y_of + (query * y_at[2])[:, None], y_q.to(y.dtype.element_ty), mask=on)
    tl.store(last + scan * size + nd, h, mask=on_state)


@triton.jit
def cross_backward(
    u, dt, A, B, C, bias, orders, queue, first, saved, grad_y, grad_last,
    du, ddt, dA, dB, dC, dbias,
    u_at, dt_at, B_at, C_at, A_at, bias_at, grad_y_at, du_at, ddt_at,
    K, L, queries, channels, states,
    CHUNK: tl.constexpr, PART: tl.constexpr, N: tl.constexpr, W: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Write du and ddt per direction, and partial sums of all other gradients.

    dB (blocks, b, k, l, n) and dC (blocks, b, k, q, n) are partial in the channels; dA (b, k, n, d) and dbias
    (b, k, d) in the batch.
    """
    scan = tl.program_id(0).to(tl.int64)
    batch, k, k_decay, d = place(tl.program_id(1), K, 1, W, False)
    n = tl.arange(0, N)
    on, on_decay, on_parameter, on_state = tile_masks(k, d, n, K, channels, states)
    nd = (n * channels)[None, :, None] + d[:, None, :]
    size = states * channels
    A2, shift, _ = load_constants(A, bias, None, A_at, bias_at, 0, k, k_decay, d, nd, on, on_decay, on_state)
    u_of, dt_of = rows(u, u_at, batch, k, d), rows(dt, dt_at, batch, k, d)
    du_of, ddt_of = rows(du, du_at, batch, k, d), rows(ddt, ddt_at, batch, k, d)
    B_of, C_of = rows(B, B_at, batch, k, n[None, :]), rows(C, C_at, batch, k, n[None, :])
    part = tl.program_id(1) * tl.num_programs(0) + scan

    g = tl.zeros(on_state.shape, tl.float32)
    if grad_last is not None:
        g += tl.load(grad_last + scan * size + nd, mask=on_state, other=0.0)
    dA_sum = tl.zeros(on_state.shape, tl.float32)
    dbias_sum = tl.zeros(on.shape, tl.float32)
    for back in range(0, tl.cdiv(L, PART)):
        start = (tl.cdiv(L, PART) - 1 - back) * PART
        chunk = start // CHUNK
        h = tl.load(saved + (scan * tl.cdiv(L, CHUNK) + chunk) * size + nd, mask=on_state, other=0.0)
        for before in range(chunk * CHUNK, start, PART):
            h = replay(
                h, before, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, None, shift, A2,
                scan, k, k_decay, on, on_decay, on_parameter, K, L, PART, SOFTPLUS, False,
            )[PART]  # fmt: skip
        held = replay(
            h, start, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, None, shift, A2,
            scan, k, k_decay, on, on_decay, on_parameter, K, L, PART, SOFTPLUS, False,
        )  # fmt: skip
        for i in tl.static_range(PART):
            t = start + PART - 1 - i
            u_t, dt_t, slope, B_t, fresh, tokens, exists = read(
                t, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, None, shift,
                scan, k, k_decay, on, on_decay, on_parameter, K, L, SOFTPLUS, False,
            )  # fmt: skip
            if grad_y is not None:
                grad_y_of = rows(grad_y, grad_y_at, batch, k, d)
                # no query is due after the last step
                begin = tl.load(first + scan * (L + 1) + tl.minimum(t, L))
                end = tl.load(first + scan * (L + 1) + tl.minimum(t + 1, L))
                for j in range(begin, end):
                    query = tl.load(queue + scan * queries + j) + 0 * k
                    grad_q = load_row(grad_y_of, grad_y_at[2], query, on)
                    g += load_row(C_of, C_at[2], query, on_parameter)[:, :, None] * grad_q[:, None, :]
                    dC_q = tl.sum(held[PART - i] * grad_q[:, None, :], axis=2)
                    tl.store(dC + ((part * queries + query) * states)[:, None] + n[None, :], dC_q, mask=on_parameter)
            kept = decay_of(dt_t, A2, fresh, None)
            dB_t = tl.sum(g * (dt_t * u_t)[:, None, :], axis=2)
            through_B = tl.sum(g * B_t[:, :, None], axis=1)
            through_decay = g * kept * held[PART - 1 - i]
            ddt_t = tl.sum(through_decay * A2, axis=1) / LOG2E + through_B * u_t
            ddt_t = tl.where(exists, ddt_t * slope, 0.0)
            dA_sum += through_decay * dt_t[:, None, :]
            dbias_sum += ddt_t
            g *= kept
            tl.store(dB + ((part * L + tokens[2]) * states)[:, None] + n[None, :], dB_t, mask=on_parameter & exists)
            du_t = (dt_t * through_B).to(du.dtype.element_ty)
            tl.store(du_of + (tokens[0] * du_at[2])[:, None], du_t, mask=on & exists)
            tl.store(ddt_of + (tokens[1] * ddt_at[2])[:, None], ddt_t.to(ddt.dtype.element_ty), mask=on & exists)
    tl.store(dA + scan * size + nd, dA_sum, mask=on_state)
    if dbias is not None:
        tl.store(dbias + scan * channels + d, dbias_sum, mask=on)
