"""Half-precision results are rounded once, at the end: what that means for each op, on any device and backend."""

import torch

from transmamba import ops

BATCH, K, LENGTH, DIM, STATE = 2, 2, 21, 5, 3
HALVES = (torch.bfloat16, torch.float16)


class Draw:
    """Random tensors: `half` ones hold numbers of the half precision, the others are float32."""

    def __init__(self, dtype, device):
        self.dtype, self.device = dtype, device

    def half(self, *shape):
        return torch.randn(*shape, device=self.device).to(self.dtype).requires_grad_()

    def full(self, *shape):
        return torch.randn(*shape, device=self.device).requires_grad_()

    def decay(self, *shape):
        return (-torch.rand(*shape, device=self.device) - 0.1).requires_grad_()


def _orders(device):
    return ops.scan_orders(["forward", "backward"], LENGTH, device)


def _tokens(device):
    return torch.randint(LENGTH, (BATCH, 7), generator=torch.Generator().manual_seed(2)).to(device)


def _packed(device):
    return (torch.arange(LENGTH, device=device) // 4).expand(BATCH, -1)


def _scan(draw):
    return {
        "u": draw.half(BATCH, LENGTH, DIM), "dt": draw.half(BATCH, 1, LENGTH, DIM), "A": draw.decay(K, DIM, STATE),
        "B": draw.half(BATCH, K, LENGTH, STATE), "C": draw.half(BATCH, K, LENGTH, STATE), "D": draw.full(K, DIM),
        "dt_bias": draw.full(K, DIM),
    }  # fmt: skip


def selective_scan(draw, **options):
    """mamba-ssm's call, gated."""
    sequence, parameter = (BATCH, DIM, LENGTH), (BATCH, STATE, LENGTH)
    return ops.selective_scan, {
        "u": draw.half(*sequence), "delta": draw.half(*sequence), "A": draw.decay(DIM, STATE),
        "B": draw.half(*parameter), "C": draw.half(*parameter), "D": draw.full(DIM), "z": draw.half(*sequence),
        "delta_bias": draw.full(DIM),
    }, {"delta_softplus": True, **options}  # fmt: skip


def multi_scan(draw, **options):
    """Directions apart."""
    return ops.multi_scan, _scan(draw), {"softplus": True, "orders": _orders(draw.device), **options}


def merged_scan(draw, **options):
    """Directions summed."""
    return ops.multi_scan, _scan(draw), {"softplus": True, "orders": _orders(draw.device), "merge": True, **options}


def gated_scan(draw, **options):
    """Directions summed and gated."""
    scan, inputs, options = merged_scan(draw, **options)
    return scan, {**inputs, "z": draw.half(BATCH, LENGTH, DIM)}, options


def apart_gated_scan(draw, **options):
    """Directions gated apart."""
    scan, inputs, options = multi_scan(draw, **options)
    return scan, {**inputs, "z": draw.half(BATCH, K, LENGTH, DIM)}, options


def cross_scan(draw, **options):
    """Queries that read somewhere on the way."""
    inputs = {name: x for name, x in _scan(draw).items() if name != "D"}
    inputs["C"] = draw.half(BATCH, K, 7, STATE)
    options = {"softplus": True, "orders": _orders(draw.device), "reads": _tokens(draw.device), **options}
    return ops.cross_scan, inputs, options


def merged_cross_scan(draw, **options):
    """The same, directions summed."""
    return cross_scan(draw, merge=True, **options)


def last_cross_scan(draw, **options):
    """Queries that read the last state."""
    return cross_scan(draw, merge=True, reads=None, **options)


def causal_conv1d(draw, **options):
    """Directions with float32 weights."""
    inputs = {"x": draw.half(BATCH, LENGTH, DIM), "weight": draw.full(K, DIM, 4), "bias": draw.full(K, DIM)}
    return ops.causal_conv1d, inputs, {"orders": _orders(draw.device), "activation": "silu", **options}


def packed_conv1d(draw, **options):
    """Packed sequences, no activation."""
    return causal_conv1d(draw, activation=None, seq_idx=_packed(draw.device), **options)


def continued_conv1d(draw, **options):
    """Tokens before the first."""
    function, inputs, options = causal_conv1d(draw, **options)
    return function, {**inputs, "initial_tokens": draw.half(BATCH, K, 3, DIM)}, options


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
    """A state of half precision as well."""
    return ops.selective_step, {
        "state": draw.half(BATCH, DIM, STATE), "u": draw.half(BATCH, DIM), "dt": draw.half(BATCH, DIM),
        "A": draw.decay(DIM, STATE), "B": draw.full(BATCH, STATE), "C": draw.full(BATCH, STATE), "D": draw.full(DIM),
        "z": draw.half(BATCH, DIM), "dt_bias": draw.full(DIM),
    }, {"dt_softplus": True}  # fmt: skip


def conv_step(draw):
    """Float32 weights and an activation."""
    return ops.conv_step, {
        "state": draw.half(BATCH, DIM, 4), "x": draw.half(BATCH, DIM), "weight": draw.full(DIM, 4),
        "bias": draw.full(DIM),
    }, {"activation": "silu"}  # fmt: skip


def ssd_scan(draw):
    """Heads of two groups."""
    return ops.ssd_scan, {
        "x": draw.half(BATCH, LENGTH, 4, DIM), "dt": draw.half(BATCH, LENGTH, 4), "A": draw.decay(4),
        "B": draw.half(BATCH, LENGTH, 2, STATE), "C": draw.half(BATCH, LENGTH, 2, STATE), "D": draw.full(4),
        "dt_bias": draw.full(4),
    }, {"dt_softplus": True, "chunk_size": 8}  # fmt: skip


def ssd_step(draw):
    """A state of half precision as well."""
    return ops.ssd_step, {
        "state": draw.half(BATCH, 4, DIM, STATE), "x": draw.half(BATCH, 4, DIM), "dt": draw.half(BATCH, 4),
        "A": draw.decay(4), "B": draw.half(BATCH, 2, STATE), "C": draw.half(BATCH, 2, STATE), "D": draw.full(4),
        "dt_bias": draw.full(4),
    }, {"dt_softplus": True}  # fmt: skip


def _heads(draw, *axes):
    inputs = {name: draw.half(*axes, 3, size) for name, size in (("x", DIM), ("B", 5), ("C", 5), ("theta", 2))}
    sizes = {"dt": torch.rand, "A": lambda *s, **o: -torch.rand(*s, **o), "blend": torch.rand}
    rates = {name: f(*axes, 3, device=draw.device).requires_grad_() for name, f in sizes.items()}
    return {**inputs, **rates, "D": draw.full(3), "z": draw.half(*axes, 3, DIM)}


def trapezoidal_scan(draw):
    """Mamba-3, gated."""
    return ops.trapezoidal_scan, _heads(draw, BATCH, LENGTH), {"chunk_size": 8}


def trapezoidal_step(draw):
    """One step of it from a state of half precision."""
    shapes = ((2,), (DIM, 5), (5,), (DIM,))
    before = ops.TrapezoidState(*(draw.half(BATCH, 3, *shape) for shape in shapes))

    def step(angle, state, old_B, old_x, **inputs):
        return ops.trapezoidal_step(ops.TrapezoidState(angle, state, old_B, old_x), **inputs)

    return step, {**dict(zip(("angle", "state", "old_B", "old_x"), before, strict=True)), **_heads(draw, BATCH)}, {}


PLAIN = (selective_step, conv_step, ssd_scan, ssd_step, trapezoidal_scan, trapezoidal_step)


def check(case, dtype, device="cpu", *, units=0.5, **options):
    """Compare outputs and gradients with float64: `units` in the last place, and what float32 sums lose."""
    torch.manual_seed(0)
    function, inputs, options = case(Draw(dtype, device), **options)
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
