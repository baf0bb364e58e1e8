"""Depthwise causal convolution in Triton: tiles of time by channels, each reading its neighbourhood itself.

`x_at` holds the strides of x by batch, token and channel. STEP is 1, or -1 to look ahead instead of back: output t
then reads tokens t, t + 1, ... with the weights that tokens t, t - 1, ... have otherwise.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def tile_at(x, x_at, t, d, L, channels):
    """Return the tokens t of channels d as float32, zero outside the sequence."""
    place = tl.program_id(0).to(tl.int64) * x_at[0] + t.to(tl.int64)[:, None] * x_at[1] + d[None, :] * x_at[2]
    on = ((t >= 0) & (t < L))[:, None] & (d < channels)[None, :]
    return tl.load(x + place, mask=on, other=0.0).to(tl.float32)


@triton.jit
def put_tile(x, x_at, t, d, L, channels, values):
    """Write tokens t of channels d."""
    place = tl.program_id(0).to(tl.int64) * x_at[0] + t.to(tl.int64)[:, None] * x_at[1] + d[None, :] * x_at[2]
    tl.store(x + place, values.to(x.dtype.element_ty), mask=(t < L)[:, None] & (d < channels)[None, :])


@triton.jit
def load_taps(weight, bias, weight_at, d, channels, WIDTH: tl.constexpr):
    """Return the weights by tap, the tap of the output's own token last, and the bias, [1, W] each."""
    taps = ()
    for j in tl.static_range(WIDTH):
        tap = tl.load(weight + d * weight_at[0] + j * weight_at[1], mask=d < channels, other=0.0)
        taps = taps + (tap.to(tl.float32)[None, :],)
    shift = tl.zeros(d.shape, tl.float32)
    if bias is not None:
        shift += tl.load(bias + d, mask=d < channels, other=0.0).to(tl.float32)
    return taps, shift[None, :]


@triton.jit
def conv_forward_kernel(
    x, weight, bias, y, x_at, weight_at, y_at, L, channels,
    WIDTH: tl.constexpr, STEP: tl.constexpr, SILU: tl.constexpr, T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Write y."""
    t, d = tl.program_id(1) * T + tl.arange(0, T), tl.program_id(2) * W + tl.arange(0, W)
    taps, shift = load_taps(weight, bias, weight_at, d, channels, WIDTH)
    z = tl.zeros([T, W], tl.float32) + shift
    for j in tl.static_range(WIDTH):
        z += taps[j] * tile_at(x, x_at, t - STEP * (WIDTH - 1 - j), d, L, channels)
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    put_tile(y, y_at, t, d, L, channels, z)


@triton.jit
def conv_backward_kernel(
    x, weight, bias, grad_y, dx, dweight, dbias, x_at, weight_at, grad_y_at, dx_at, L, channels,
    WIDTH: tl.constexpr, STEP: tl.constexpr, SILU: tl.constexpr, T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Write dx, and dweight (b, blocks of time, width, d) and dbias (b, blocks of time, d) of this tile.

    dx of a token needs the gradient before the activation at the WIDTH tokens that read it, and that in turn the
    WIDTH tokens that each of them reads: 2 WIDTH - 1 tiles of x are loaded, one token apart.
    """
    t, d = tl.program_id(1) * T + tl.arange(0, T), tl.program_id(2) * W + tl.arange(0, W)
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    taps, shift = load_taps(weight, bias, weight_at, d, channels, WIDTH)
    near = ()
    for j in tl.static_range(2 * WIDTH - 1 if SILU else WIDTH):
        near = near + (tile_at(x, x_at, t - STEP * (WIDTH - 1 - j), d, L, channels),)

    total = tl.zeros([T, W], tl.float32)
    for ahead in tl.static_range(WIDTH):
        g = tile_at(grad_y, grad_y_at, t + STEP * ahead, d, L, channels)
        if SILU:
            z = tl.zeros([T, W], tl.float32) + shift
            for j in tl.static_range(WIDTH):
                z += taps[j] * near[ahead + j]
            gate = 1.0 / (1.0 + tl.exp(-z))
            g *= gate * (1.0 + z * (1.0 - gate))
        total += taps[WIDTH - 1 - ahead] * g
        if ahead == 0:
            own = tl.where((t < L)[:, None], g, 0.0)
            for j in tl.static_range(WIDTH):
                tl.store(dweight + (row * WIDTH + j) * channels + d, tl.sum(own * near[j], axis=0), mask=d < channels)
            if dbias is not None:
                tl.store(dbias + row * channels + d, tl.sum(own, axis=0), mask=d < channels)
    put_tile(dx, dx_at, t, d, L, channels, total)
