"""The shared parts of the scan kernels: which scans and channels a program has, and the arithmetic of one step.

A program works on a tile [Q, N, W]: N states by W channels, the channels on the lanes, for Q rows. Usually the rows
are Q further blocks of channels of one direction. With `SHARED` they are the directions themselves: dt and A are
the same at every step of all of them, so that one decay [1, N, W] serves Q recurrences.

`x_at` holds the strides of x by batch, direction, token and channel (or state), zero for a direction that is shared.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def place(block, K, Q: tl.constexpr, W: tl.constexpr, SHARED: tl.constexpr):
    """Give batch entry, directions [1 or Q], those of the decay [1], channels [Q or 1, W] of a block of channels."""
    group = tl.program_id(0)
    at = tl.arange(0, W)
    lane = at[None, :]
    if SHARED:
        # scattered, because the compiler then gives a lane more states and fewer channels: fewer shuffles
        if W >= 8:
            lane = ((at % (W // 4)) * 4 + at // (W // 4))[None, :]
        batch = group.to(tl.int64)
        k = tl.arange(0, Q).to(tl.int64)
        k_decay = tl.arange(0, 1).to(tl.int64)
        d = block * W + lane
    else:
        batch = (group // K).to(tl.int64)
        k = (group % K + tl.arange(0, 1)).to(tl.int64)
        k_decay = k
        d = (block * Q + tl.arange(0, Q)[:, None]) * W + lane
    return batch, k, k_decay, d


@triton.jit
def tile_masks(k, d, n, K, channels, states):
    """Mark the entries that exist: of [Q, W], of the decay's [1 or Q, W], of [1 or Q, N], of [Q, N, W]."""
    on_decay = d < channels
    on = (k < K)[:, None] & on_decay
    on_parameter = (k < K)[:, None] & (n < states)[None, :]
    return on, on_decay, on_parameter, on[:, None, :] & (n < states)[None, :, None]


@triton.jit
def rows(x, x_at, batch, k, column):
    """Return the pointers to entry `column` of token zero, [k, column]."""
    return x + batch * x_at[0] + (k * x_at[1])[:, None] + column * x_at[3]


@triton.jit
def load_row(x_of, stride, token, mask):
    """Return the entries of one token per direction, as float32."""
    return tl.load(x_of + (token * stride)[:, None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_constants(A, bias, D, A_at, bias_at, D_at, k, k_decay, d, nd, on, on_decay, on_A):
    """Load A in units of log 2, and bias and D, zero where there is none."""
    A2 = tl.load(A + (k_decay * A_at)[:, None, None] + nd, mask=on_A, other=0.0) * LOG2E
    shift = tl.zeros(d.shape, tl.float32)
    if bias is not None:
        shift = tl.load(bias + (k_decay * bias_at)[:, None] + d, mask=on_decay, other=0.0)
    skip = tl.zeros(on.shape, tl.float32)
    if D is not None:
        skip = tl.load(D + (k * D_at)[:, None] + d, mask=on, other=0.0)
    return A2, shift, skip


@triton.jit
def visited(t, orders, k, k_decay, K, L, BY_STEP: tl.constexpr):
    """Return the tokens visited at step t, as rows of u and y, of dt, and of B and C."""
    token = t + 0 * k
    decay_token = t + 0 * k_decay
    parameter_token = token
    if orders is not None:
        token = tl.load(orders + k * L + t, mask=k < K, other=0)
        if not BY_STEP:
            decay_token = token
            parameter_token = token
    return token, decay_token, parameter_token


@triton.jit
def log1p(x):
    """Compute log(1 + x) for 0 <= x <= 1 by the series of 2 artanh(x / (2 + x)): the hardware log is bad near 1."""
    s = x / (2.0 + x)
    q = s * s
    series = 1.0 / 11 + q * (1.0 / 13 + q * (1.0 / 15))
    series = 1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * series))
    return 2.0 * s * (1.0 + q * (1.0 / 3 + q * series))


@triton.jit
def step_size(x, SOFTPLUS: tl.constexpr):
    """Compute the discretisation step of x, which has its bias, and the derivative."""
    slope = tl.full(x.shape, 1.0, tl.float32)
    if SOFTPLUS:
        e = tl.exp(-tl.abs(x))
        slope = tl.where(x >= 0, 1.0, e) / (1.0 + e)
        x = tl.maximum(x, 0.0) + log1p(e)
    return x, slope


@triton.jit
def read(
    t, u_of, dt_of, B_of, u_row, dt_row, B_row, orders, restart, shift, bk, k, k_decay, on, on_decay, on_parameter,
    K, L, SOFTPLUS: tl.constexpr, BY_STEP: tl.constexpr,
):  # fmt: skip
    """Read the inputs of step t: u, step size, its derivative, B, whether it restarts, rows visited, whether it exists.

    A step past the end has length zero: it keeps the state and receives no gradient.
    """
    exists = t + 0 * k_decay < L
    at = tl.minimum(t, L - 1)
    token, decay_token, parameter_token = visited(at, orders, k, k_decay, K, L, BY_STEP)
    u_t = load_row(u_of, u_row, token, on & exists)
    raw = load_row(dt_of, dt_row, decay_token, on_decay & exists)
    B_t = load_row(B_of, B_row, parameter_token, on_parameter & exists)
    fresh = exists
    if restart is not None:
        fresh = tl.load(restart + bk * L + at, mask=exists, other=0) != 0
    dt_t, slope = step_size(raw + shift, SOFTPLUS)
    return u_t, tl.where(exists, dt_t, 0.0), slope, B_t, fresh, (token, decay_token, parameter_token), exists


@triton.jit
def decay_of(dt_t, A2, fresh, restart):
    """Compute exp(dt A) [1 or Q, N, W], zero where the state restarts."""
    decay = tl.exp2(dt_t[:, None, :] * A2)
    if restart is not None:
        decay = tl.where(fresh[:, None, None], 0.0, decay)
    return decay


@triton.jit
def advance(h, step, A2, restart):
    """Compute the state after a step given as `read` returns it."""
    u_t, dt_t, _, B_t, fresh, _, _ = step
    return decay_of(dt_t, A2, fresh, restart) * h + (dt_t * u_t)[:, None, :] * B_t[:, :, None]
