"""The forward scan in Triton: one program per batch entry, direction, block of channels and span of time."""

# mypy: ignore-errors
import triton
import triton.language as tl

from transmamba.ops.scan.triton.steps import advance, load_constants, load_row, place, read, rows, tile_masks


@triton.jit
def scan_forward(
    u, dt, A, B, C, D, bias, orders, restart, enter, y, last, saved,
    u_at, dt_at, B_at, C_at, A_at, D_at, bias_at, y_at,
    K, L, channels, states, span,
    CHUNK: tl.constexpr, PART: tl.constexpr, Q: tl.constexpr, N: tl.constexpr, W: tl.constexpr,
    SHARED: tl.constexpr, SOFTPLUS: tl.constexpr, BY_STEP: tl.constexpr,
):  # fmt: skip
    """Write y, the last state and, if `saved` is given, the state before every CHUNK-th step.

    PART steps are read at once, so that their loads are under way together.
    `enter` (b, k, spans, n, d) holds the states at the starts of the spans; None is zero.
    """
    batch, k, k_decay, d = place(tl.program_id(1), K, Q, W, SHARED)
    segment, segments = tl.program_id(2), tl.num_programs(2)
    n = tl.arange(0, N)
    on, on_decay, on_parameter, on_state = tile_masks(k, d, n, K, channels, states)
    on_A = on_decay[:, None, :] & (n < states)[None, :, None]
    nd = (n * channels)[None, :, None] + d[:, None, :]
    bk = batch * K + k
    size = states * channels
    A2, shift, skip = load_constants(A, bias, D, A_at, bias_at, D_at, k, k_decay, d, nd, on, on_decay, on_A)
    u_of, y_of = rows(u, u_at, batch, k, d), rows(y, y_at, batch, k, d)
    dt_of = rows(dt, dt_at, batch, k_decay, d)
    B_of, C_of = rows(B, B_at, batch, k, n[None, :]), rows(C, C_at, batch, k, n[None, :])

    h = tl.zeros(on_state.shape, tl.float32)
    if enter is not None:
        h += tl.load(enter + ((bk * segments + segment) * size)[:, None, None] + nd, mask=on_state, other=0.0)
    for start in range(segment * span, tl.minimum((segment + 1) * span, L), PART):
        if saved is not None:
            if start % CHUNK == 0:
                chunk = bk * tl.cdiv(L, CHUNK) + start // CHUNK
                tl.store(saved + (chunk * size)[:, None, None] + nd, h, mask=on_state)
        steps = ()
        for i in tl.static_range(PART):
            step = read(
                start + i, u_of, dt_of, B_of, u_at[2], dt_at[2], B_at[2], orders, restart, shift,
                bk, k, k_decay, on, on_decay, on_parameter, K, L, SOFTPLUS, BY_STEP,
            )  # fmt: skip
            C_t = load_row(C_of, C_at[2], step[5][2], on_parameter & step[6])
            steps = steps + ((step, C_t),)
        for i in tl.static_range(PART):
            step, C_t = steps[i]
            h = advance(h, step, A2, restart)
            y_t = tl.sum(h * C_t[:, :, None], axis=1) + skip * step[0]
            tl.store(y_of + (step[5][0] * y_at[2])[:, None], y_t.to(y.dtype.element_ty), mask=on & step[6])
    if segment == segments - 1:
        tl.store(last + (bk * size)[:, None, None] + nd, h, mask=on_state)
