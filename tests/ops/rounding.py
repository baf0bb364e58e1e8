"""Half-precision results are rounded once, at the end: the consequence for each op, on any device and backend."""

import torch

from transmamba import ops

K, DIM, STATE = 2, 5, 3
SIZES = (2, 21)  # batch and length
HALVES = (torch.bfloat16, torch.float16)


class Draw:
    """Random tensors: `half` ones hold numbers of the half precision, the others are float32."""

    def __init__(self, dtype, device, sizes=SIZES):
        self.dtype, self.device = dtype, device
        self.batch, self.length = sizes

    def half(self, *shape):
        return torch.randn(*shape, device=self.device).to(self.dtype).requires_grad_()

    def full(self, *shape):
        return torch.randn(*shape, device=self.device).requires_grad_()

    def decay(self, *shape):
        return (-torch.rand(*shape, device=self.device) - 0.1).requires_grad_()


def _orders(draw):
    return ops.scan_orders(["forward", "backward"], draw.length, draw.device)


def _tokens(draw):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(draw.length, (draw.batch, 7), generator=generator).to(draw.device)


def _packed(draw):
    return (torch.arange(draw.length, device=draw.device) // 4).expand(draw.batch, -1)


def _scan(draw):
    batch, length = draw.batch, draw.length
    return {
        "u": draw.half(batch, length, DIM), "dt": draw.half(batch, 1, length, DIM), "A": draw.decay(K, DIM, STATE),
        "B": draw.half(batch, K, length, STATE), "C": draw.half(batch, K, length, STATE), "D": draw.full(K, DIM),
        "dt_bias": draw.full(K, DIM),
    }  # fmt: skip


def selective_scan(draw, **options):
    """Run mamba-ssm's call, gated."""
    batch, length = draw.batch, draw.length
    sequence, parameter = (batch, DIM, length), (batch, STATE, length)
    return ops.selective_scan, {
        "u": draw.half(*sequence), "delta": draw.half(*sequence), "A": draw.decay(DIM, STATE),
        "B": draw.half(*parameter), "C": draw.half(*parameter), "D": draw.full(DIM), "z": draw.half(*sequence),
        "delta_bias": draw.full(DIM),
    }, {"delta_softplus": True, **options}  # fmt: skip


def multi_scan(draw, **options):
    """Scan directions apart."""
    return ops.multi_scan, _scan(draw), {"softplus": True, "orders": _orders(draw), **options}


def merged_scan(draw, **options):
    """Scan directions and sum them."""
    return ops.multi_scan, _scan(draw), {"softplus": True, "orders": _orders(draw), "merge": True, **options}


def gated_scan(draw, **options):
    """Scan directions, sum and gate them."""
    batch, length = draw.batch, draw.length
    scan, inputs, options = merged_scan(draw, **options)
    return scan, {**inputs, "z": draw.half(batch, length, DIM)}, options


def apart_gated_scan(draw, **options):
    """Scan directions and gate each."""
    batch, length = draw.batch, draw.length
    scan, inputs, options = multi_scan(draw, **options)
    return scan, {**inputs, "z": draw.half(batch, K, length, DIM)}, options


def cross_scan(draw, **options):
    """Let queries read somewhere on the way."""
    inputs = {name: x for name, x in _scan(draw).items() if name != "D"}
    inputs["C"] = draw.half(draw.batch, K, 7, STATE)
    options = {"softplus": True, "orders": _orders(draw), "reads": _tokens(draw), **options}
    return ops.cross_scan, inputs, options


def merged_cross_scan(draw, **options):
    """Run the same, and sum the directions."""
    return cross_scan(draw, merge=True, **options)


def last_cross_scan(draw, **options):
    """Let queries read the last state."""
    return cross_scan(draw, merge=True, reads=None, **options)


def causal_conv1d(draw, **options):
    """Convolve directions with float32 weights."""
    batch, length = draw.batch, draw.length
    inputs = {"x": draw.half(batch, length, DIM), "weight": draw.full(K, DIM, 4), "bias": draw.full(K, DIM)}
    return ops.causal_conv1d, inputs, {"orders": _orders(draw), "activation": "silu", **options}


def packed_conv1d(draw, **options):
    """Convolve packed sequences, without an activation."""
    return causal_conv1d(draw, activation=None, seq_idx=_packed(draw), **options)


def continued_conv1d(draw, **options):
    """Continue after tokens before the first."""
    function, inputs, options = causal_conv1d(draw, **options)
    return function, {**inputs, "initial_tokens": draw.half(draw.batch, K, 3, DIM)}, options


BY_BACKEND = (
    selective_scan,
    multi_scan,
    merged_scan,
    gated_scan,
    apart_gated_scan,
    cross_scan,
    merged_cross_scan,
    last_cross_scan,
    causal_conv1d,
    packed_conv1d,
    continued_conv1d,
)


def selective_step(draw):
    """Step from a state of half precision as well."""
    batch = draw.batch
    return ops.selective_step, {
        "state": draw.half(batch, DIM, STATE), "u": draw.half(batch, DIM), "dt": draw.half(batch, DIM),
        "A": draw.decay(DIM, STATE), "B": draw.full(batch, STATE), "C": draw.full(batch, STATE), "D": draw.full(DIM),
        "z": draw.half(batch, DIM), "dt_bias": draw.full(DIM),
    }, {"dt_softplus": True}  # fmt: skip


def conv_step(draw):
    """Step with float32 weights and an activation."""
    batch = draw.batch
    return ops.conv_step, {
        "state": draw.half(batch, DIM, 4), "x": draw.half(batch, DIM), "weight": draw.full(DIM, 4),
        "bias": draw.full(DIM),
    }, {"activation": "silu"}  # fmt: skip


def ssd_scan(draw):
    """Scan heads of two groups."""
    batch, length = draw.batch, draw.length
    return ops.ssd_scan, {
        "x": draw.half(batch, length, 4, DIM), "dt": draw.half(batch, length, 4), "A": draw.decay(4),
        "B": draw.half(batch, length, 2, STATE), "C": draw.half(batch, length, 2, STATE), "D": draw.full(4),
        "dt_bias": draw.full(4),
    }, {"dt_softplus": True, "chunk_size": 8}  # fmt: skip


def ssd_step(draw):
    """Step from a state of half precision as well."""
    batch = draw.batch
    return ops.ssd_step, {
        "state": draw.half(batch, 4, DIM, STATE), "x": draw.half(batch, 4, DIM), "dt": draw.half(batch, 4),
        "A": draw.decay(4), "B": draw.half(batch, 2, STATE), "C": draw.half(batch, 2, STATE), "D": draw.full(4),
        "dt_bias": draw.full(4),
    }, {"dt_softplus": True}  # fmt: skip


def _heads(draw, *axes):
    inputs = {name: draw.half(*axes, 3, size) for name, size in (("x", DIM), ("B", 5), ("C", 5), ("theta", 2))}
    sizes = {"dt": torch.rand, "A": lambda *s, **o: -torch.rand(*s, **o), "blend": torch.rand}
    rates = {name: f(*axes, 3, device=draw.device).requires_grad_() for name, f in sizes.items()}
    return {**inputs, **rates, "D": draw.full(3), "z": draw.half(*axes, 3, DIM)}


def trapezoidal_scan(draw):
    """Run Mamba-3, gated."""
    batch, length = draw.batch, draw.length
    return ops.trapezoidal_scan, _heads(draw, batch, length), {"chunk_size": 8}


def trapezoidal_step(draw):
    """Take one step of it from a state of half precision."""
    batch = draw.batch
    shapes = ((2,), (DIM, 5), (5,), (DIM,))
    before = ops.TrapezoidState(*(draw.half(batch, 3, *shape) for shape in shapes))

    def step(angle, state, old_B, old_x, **inputs):
        return ops.trapezoidal_step(ops.TrapezoidState(angle, state, old_B, old_x), **inputs)

    return step, {**dict(zip(("angle", "state", "old_B", "old_x"), before, strict=True)), **_heads(draw, batch)}, {}


PLAIN = (selective_step, conv_step, ssd_scan, ssd_step, trapezoidal_scan, trapezoidal_step)


def check(case, dtype, device="cpu", *, units=0.5, sizes=SIZES, **options):
    """Compare outputs and gradients with float64: `units` in the last place, and the loss of float32 sums."""
    torch.manual_seed(0)
    function, inputs, options = case(Draw(dtype, device, sizes), **options)
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    plain = {"backend": "reference"} if "backend" in options else {}
    y, expected = _first(function(**inputs, **options)), _first(function(**exact, **{**options, **plain}))
    weight = torch.randn_like(expected).to(dtype)
    grads = torch.autograd.grad(y, list(inputs.values()), weight)
    wanted = torch.autograd.grad(expected, list(exact.values()), weight.double())
    assert y.dtype == dtype
    _compare("output", y, expected, units)
    for name, got, want in zip(inputs, grads, wanted, strict=True):
        assert got.dtype == inputs[name].dtype
        _compare(f"gradient of {name}", got, want, units)


def _first(result):
    return result[0] if isinstance(result, tuple) else result


def _compare(name, got, exact, units):
    unit = torch.finfo(got.dtype).eps if got.dtype in HALVES else 0.0
    allowed = units * unit * exact.abs() + 2e-5 * exact.abs().max()
    excess = ((got.double() - exact).abs() - allowed).max()
    assert excess <= 0, f"{name} is off by {excess:.1e} more than one rounding"
