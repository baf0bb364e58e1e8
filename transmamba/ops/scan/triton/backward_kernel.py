"""The backward scan in Triton: chunks from last to first, their states recomputed from the checkpoints."""

# mypy: ignore-errors
import triton
import triton.language as tl

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
def replay(
    h, start, u_of, dt_of, B_of, u_row, dt_row, B_row, orders, restart, shift, A2, bk, k, k_decay,
    on, on_decay, on_parameter, K, L, STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, BY_STEP: tl.constexpr,
):  # fmt: skip
    """Return h, and the states after each of STEPS steps; the steps are read at once, so that their loads overlap."""
    steps = ()
    for i in tl.static_range(STEPS):
        step = read(
            start + i, u_of, dt_of, B_of, u_row, dt_row, B_row, orders, restart, shift,
            bk, k, k_decay, on, on_decay, on_parameter, K, L, SOFTPLUS, BY_STEP,
        )  # fmt: skip
        steps = steps + (step,)
    held = (h,)
    for i in tl.static_range(STEPS):
        held = held + (advance(held[i], steps[i], A2, restart),)
    return held


@triton.jit
def read_part(
    start, u_of, dt_of, B_of, C_of, grad_y_of, u_row, dt_row, B_row, C_row, grad_y_row, orders, restart, shift,
    bk, k, k_decay, on, on_decay, on_parameter, K, L,
    STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, BY_STEP: tl.constexpr,
):  # fmt: skip
    """Read STEPS steps as `read` returns them, each with its C and its gradient of y."""
    steps = ()
    for i in tl.static_range(STEPS):
        step = read(
            start + i, u_of, dt_of, B_of, u_row, dt_row, B_row, orders, restart, shift,
            bk, k, k_decay, on, on_decay, on_parameter, K, L, SOFTPLUS, BY_STEP,
        )  # fmt: skip
        C_t = load_row(C_of, C_row, step[5][2], on_parameter & step[6])
        grad_y_t = load_row(grad_y_of, grad_y_row, step[5][0], on & step[6])
        steps = steps + ((step, C_t, grad_y_t),)
    return steps


@triton.jit
def over_rows(x, SHARED: tl.constexpr):
    """Sum x over its rows if they are directions sharing a decay."""
    return tl.sum(x, axis=0)[None] if SHARED else x


@triton.jit
def over_channels(x, SHARED: tl.constexpr):
    """Sum x [Q, N, W] over channels: [Q, N] if the rows are directions, else [1, N]."""
    x = tl.sum(x, axis=2)
    return x if SHARED else tl.sum(x, axis=0)[None]


@triton.jit
def scan_backward(  # noqa: C901
    u, dt, A, B, C, D, bias, orders, restart, saved, leave, grad_y,
    du, ddt, dA, dB, dC, dD, dbias, dstart,
    u_at, dt_at, B_at, C_at, A_at, D_at, bias_at, grad_y_at, du_at, ddt_at,
    K, L, channels, states, span, turn,
    CHUNK: tl.constexpr, PART: tl.constexpr, Q: tl.constexpr, N: tl.constexpr, W: tl.constexpr,
    SHARED: tl.constexpr, SOFTPLUS: tl.constexpr, BY_STEP: tl.constexpr, ADD: tl.constexpr,
    ONCE: tl.constexpr,
):  # fmt: skip
    """Write du per direction, ddt per direction of the decay, and partial sums of all other gradients.

    dB and dC (parts, b, k, l, n) are partial in the channels: a launch takes one block for each part, and launches
    after the first ADD to it. dA (spans, b, 1|k, n, d), dD (spans, b, k, d) and dbias (spans, b, 1|k, d) are partial
    in time and batch. `leave` (b, k, spans, n, d) holds the adjoints of the states at the ends of the spans; None is
    zero. The states of PART steps at a time are recomputed from the checkpoint before them and held in registers.
    With ONCE the inputs of those steps are held too and read before the first store, because no load moves above a
    store; without it they are read again, because with many states the registers do not hold both.
    """
    batches = tl.num_programs(0) // (1 if SHARED else K)
    segment, segments = tl.program_id(2), tl.num_programs(2)
    batch, k, k_decay, d = place(tl.program_id(1) + turn * tl.num_programs(1), K, Q, W, SHARED)
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
    part = (tl.program_id(1) * batches * K + bk) * L

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
        for before in range(chunk * CHUNK, start, PART):
            h = replay(
                h, before, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, restart, shift, A2,
                bk, k, k_decay, on, on_decay, on_parameter, K, L, PART, SOFTPLUS, BY_STEP,
            )[PART]  # fmt: skip
        if ONCE:
            steps = read_part(
                start, u_of, dt_of, B_of, C_of, grad_y_of, u_at[2], dt_at[2], B_at[2], C_at[2], grad_y_at[2],
                orders, restart, shift, bk, k, k_decay, on, on_decay, on_parameter, K, L,
                PART, SOFTPLUS, BY_STEP,
            )  # fmt: skip
            held = (h,)
            for i in tl.static_range(PART - 1):
                held = held + (advance(held[i], steps[i][0], A2, restart),)
        else:
            held = replay(
                h, start, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, restart, shift, A2,
                bk, k, k_decay, on, on_decay, on_parameter, K, L, PART - 1, SOFTPLUS, BY_STEP,
            )  # fmt: skip
        for i in tl.static_range(PART):
            if ONCE:
                step, C_t, grad_y_t = steps[PART - 1 - i]
                u_t, dt_t, slope, B_t, fresh, tokens, exists = step
            else:
                u_t, dt_t, slope, B_t, fresh, tokens, exists = read(
                    start + PART - 1 - i, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, restart, shift,
                    bk, k, k_decay, on, on_decay, on_parameter, K, L, SOFTPLUS, BY_STEP,
                )  # fmt: skip
                C_t = load_row(C_of, C_at[2], tokens[2], on_parameter & exists)
                grad_y_t = load_row(grad_y_of, grad_y_at[2], tokens[0], on & exists)
            row = ((part + tokens[2]) * states)[:, None] + n[None, :]
            kept = decay_of(dt_t, A2, fresh, restart)
            carried = kept * held[PART - 1 - i]
            input_t = (dt_t * u_t)[:, None, :]
            g += C_t[:, :, None] * grad_y_t[:, None, :]
            dC_t = over_channels((carried + input_t * B_t[:, :, None]) * grad_y_t[:, None, :], SHARED)
            dB_t = over_channels(g * input_t, SHARED)
            through_B = tl.sum(g * B_t[:, :, None], axis=1)
            through_decay = over_rows(g * carried, SHARED)
            ddt_t = tl.sum(through_decay * A2, axis=1) / LOG2E + over_rows(through_B * u_t, SHARED)
            ddt_t = tl.where(exists, ddt_t * slope, 0.0)
            dA_sum += through_decay * dt_t[:, None, :]
            dD_sum += grad_y_t * u_t
            dbias_sum += ddt_t
            g *= kept
            if ADD:
                dB_t += tl.load(dB + row, mask=on_parameter & exists, other=0.0)
                dC_t += tl.load(dC + row, mask=on_parameter & exists, other=0.0)
            tl.store(dB + row, dB_t, mask=on_parameter & exists)
            tl.store(dC + row, dC_t, mask=on_parameter & exists)
            du_t = dt_t * through_B + skip * grad_y_t
            tl.store(du_of + (tokens[0] * du_at[2])[:, None], du_t.to(du.dtype.element_ty), mask=on & exists)
            ddt_row = ddt_of + (tokens[1] * ddt_at[2])[:, None]
            tl.store(ddt_row, ddt_t.to(ddt.dtype.element_ty), mask=on_decay & exists)

    once = segment * batches + batch
    k_decays = 1 if SHARED else K
    tl.store(dA + ((once * k_decays + k_decay) * size)[:, None, None] + nd, dA_sum, mask=on_A)
    if dD is not None:
        tl.store(dD + ((once * K + k) * channels)[:, None] + d, dD_sum, mask=on)
    if dbias is not None:
        tl.store(dbias + ((once * k_decays + k_decay) * channels)[:, None] + d, dbias_sum, mask=on_decay)
    if segment == 0:
        tl.store(dstart + (bk * size)[:, None, None] + nd, g, mask=on_state)
