"""Examples of `transmamba.ops`."""

from tests.hardening.examples.sizes import Call, orders_of
from transmamba import ops


def selective_scan(s):
    u, A = s.normal("batch dim length"), -s.positive("dim state")
    B = s.choice("batch state length", "dim state")
    return Call(ops.selective_scan, {
        "u": u, "delta": s.normal("batch dim length"), "A": A, "B": s.normal(B), "C": s.normal("batch state length"),
        "D": s.normal("dim"), "z": s.normal("batch dim length"), "delta_bias": s.normal("dim"),
        "delta_softplus": True, "return_last_state": s.choice(True, False),
        "initial_state": s.normal("batch dim state"), "backend": s.choice("auto", "native", "chunked", "reference"),
    })  # fmt: skip


def multi_scan(s):
    k, length = s["direction"], s["length"]
    return Call(ops.multi_scan, {
        "u": s.normal("batch direction length dim"), "dt": s.normal("batch direction length dim"),
        "A": -s.positive("direction dim state"), "B": s.normal("batch 1 length state"),
        "C": s.normal("batch direction length state"), "D": s.normal("1 dim"),
        "z": s.choice(None, s.normal("batch length dim")), "dt_bias": s.normal("direction dim"),
        "softplus": True, "orders": s.choice(None, orders_of(s, k, length)),
        "mask": s.choice(None, s.mask("batch length")), "seq_idx": s.choice(None, s.whole("batch length", 2)),
        "initial_state": s.choice(None, s.normal("batch direction dim state")), "merge": s.choice(True, False),
        "parameters_by_step": s.choice(True, False), "return_last_state": s.choice(True, False),
        "backend": s.choice("auto", "native", "chunked", "reference"),
    })  # fmt: skip


def explain(s):
    k, length = s["direction"], s["length"]
    return Call(ops.explain, {
        "u": s.normal("batch direction length dim"), "dt": s.normal("batch direction length dim"),
        "A": -s.positive("direction dim state"), "B": s.normal("batch 1 length state"),
        "C": s.normal("batch direction length state"), "D": s.normal("1 dim"), "dt_bias": s.normal("direction dim"),
        "softplus": True, "orders": s.choice(None, orders_of(s, k, length)),
        "mask": s.choice(None, s.mask("batch length")), "seq_idx": s.choice(None, s.whole("batch length", 2)),
        "initial_state": s.choice(None, s.normal("batch direction dim state")), "merge": s.choice(True, False),
        "parameters_by_step": s.choice(True, False),
    })  # fmt: skip


def causal_conv1d(s):
    k, length = s["direction"], s["length"]
    past = s["width"] - 1
    return Call(ops.causal_conv1d, {
        "x": s.normal("batch length dim"), "weight": s.normal("direction dim width"), "bias": s.normal("direction dim"),
        "orders": s.choice(None, orders_of(s, k, length)), "seq_idx": s.choice(None, s.whole("batch length", 2)),
        "initial_tokens": s.choice(None, s.normal(f"batch direction {past} dim")),
        "activation": s.choice(None, "silu"), "backend": s.choice("auto", "native", "chunked", "reference"),
    })  # fmt: skip


def mixing_matrix(s):
    return Call(ops.mixing_matrix, {
        "dt": s.positive("batch direction length dim"), "A": -s.positive("1 dim state"),
        "B": s.normal("batch direction length state"), "C": s.normal("batch 1 length state"),
        "D": s.normal("direction dim"), "dt_bias": s.normal("1 dim"), "softplus": True,
        "orders": s.choice(None, orders_of(s, s["direction"], s["length"])),
    })  # fmt: skip


def scan_order(s):
    grid = s.choice((s["frame"], s["row"], s["column"]), (s["row"], s["column"]))
    return Call(ops.scan_order, {"name": s.choice("snake", "diagonal_reverse"), "grid": grid, "device": "cpu"})


def scan_orders(s):
    return Call(ops.scan_orders, {"specs": ["backward", list(range(s["length"]))], "grid": s["length"], "device": None})


def permute_tokens(s):
    return Call(ops.permute_tokens, {
        "x": s.normal("batch length dim"), "order": ops.scan_order("backward", s["length"]), "dim": 1,
    })  # fmt: skip


def selective_step(s):
    return Call(ops.selective_step, {
        "state": s.normal("batch dim state"), "u": s.normal("batch dim"), "dt": s.normal("batch dim"),
        "A": -s.positive("dim state"), "B": s.normal("batch state"), "C": s.normal("batch 1 state"),
        "D": s.normal("dim"), "z": s.normal("batch dim"), "dt_bias": s.normal("dim"), "dt_softplus": True,
    })  # fmt: skip


def conv_step(s):
    return Call(ops.conv_step, {
        "state": s.normal("batch dim width"), "x": s.normal("batch dim"), "weight": s.normal("dim width"),
        "bias": s.normal("dim"), "activation": s.choice(None, "silu"),
    })  # fmt: skip


def ssd_scan(s):
    return Call(ops.ssd_scan, {
        "x": s.normal("batch length head channel"), "dt": s.normal("batch length head"), "A": -s.positive("head"),
        "B": s.normal("batch length 1 state"), "C": s.normal("batch length 1 state"), "D": s.normal("head channel"),
        "dt_bias": s.normal("head"), "dt_softplus": True, "dt_limit": (0.0, 10.0),
        "initial_state": s.normal("batch head channel state"), "seq_idx": s.choice(None, s.whole("batch length", 2)),
        "mask": s.choice(None, s.mask("batch length")), "chunk_size": s["chunk"], "return_last_state": True,
    })  # fmt: skip


def ssd_step(s):
    return Call(ops.ssd_step, {
        "state": s.normal("batch head channel state"), "x": s.normal("batch head channel"),
        "dt": s.normal("batch head"),
        "A": -s.positive("head"), "B": s.normal("batch 1 state"), "C": s.normal("batch 1 state"), "D": s.normal("head"),
        "dt_bias": s.normal("head"), "dt_softplus": True, "dt_limit": (0.0, 10.0),
    })  # fmt: skip


def _trapezoid(s, axes):
    return {
        "x": s.normal(f"{axes} head channel"), "dt": s.positive(f"{axes} head"), "A": -s.positive(f"{axes} head"),
        "B": s.normal(f"{axes} head {s['pair'] * 2 + 1}"), "C": s.normal(f"{axes} head {s['pair'] * 2 + 1}"),
        "blend": s.positive(f"{axes} head"), "theta": s.normal(f"{axes} head pair"), "D": s.normal("head"),
        "z": s.normal(f"{axes} head channel"),
    }  # fmt: skip


def _trapezoid_state(s):
    state = s["pair"] * 2 + 1
    axes = ("batch head pair", f"batch head channel {state}", f"batch head {state}", "batch head channel")
    return ops.TrapezoidState(*(s.normal(a) for a in axes))


def trapezoidal_scan(s):
    return Call(ops.trapezoidal_scan, {
        **_trapezoid(s, "batch length"), "initial": s.choice(None, _trapezoid_state(s)),
        "seq_idx": s.choice(None, s.whole("batch length", 2)), "mask": s.choice(None, s.mask("batch length")),
        "chunk_size": s["chunk"],
    })  # fmt: skip


def trapezoidal_step(s):
    return Call(ops.trapezoidal_step, {"before": _trapezoid_state(s), **_trapezoid(s, "batch")})


def use_backend(s):
    return Call(ops.use_backend, {"name": s.choice("auto", "reference")})


def cross_scan(s):
    k, length = s["direction"], s["length"]
    return Call(ops.cross_scan, {
        "u": s.normal("batch direction length dim"), "dt": s.normal("batch direction length dim"),
        "A": -s.positive("direction dim state"), "B": s.normal("batch 1 length state"),
        "C": s.normal("batch direction query state"), "reads": s.whole("batch query", length).sort(1).values,
        "dt_bias": s.normal("1 dim"), "softplus": True, "orders": s.choice(None, orders_of(s, k, length)),
        "mask": s.choice(None, s.mask("batch length")), "merge": s.choice(True, False),
        "return_last_state": s.choice(True, False), "backend": s.choice("auto", "native", "chunked", "reference"),
    })  # fmt: skip


def read_state(s):
    state = s.normal("batch direction dim state")
    return Call(ops.read_state, {
        "C": s.normal("batch direction query state"), "state": state, "merge": s.choice(True, False),
    })  # fmt: skip
