"""Every op, half precision and backend: results are rounded once, at the end."""

import pytest
import torch

from tests.ops.rounding import BY_BACKEND, HALVES, PLAIN, check
from tests.ops.scan.test_scan import accepting
from transmamba.nn import Mamba3Mixer, MambaMixer, PlainMambaMixer, moves_between
from transmamba.ops import multi_scan, scan_orders, selective_scan, selective_step

every_half = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])


@every_half
@pytest.mark.parametrize("backend", [*accepting(), "reference"])
@pytest.mark.parametrize("case", BY_BACKEND, ids=[case.__name__ for case in BY_BACKEND])
def test_backends_round_once(case, backend, dtype):
    check(case, dtype, backend=backend)


@every_half
@pytest.mark.parametrize("case", PLAIN, ids=[case.__name__ for case in PLAIN])
def test_ops_without_backends_round_once(case, dtype):
    check(case, dtype)


@pytest.mark.parametrize("backend", [*accepting(), "reference"])
def test_what_float16_cannot_hold_before_the_gate_is_no_harm(backend):
    u = torch.full((1, 2, 9), 300.0, dtype=torch.float16)
    ones, z = torch.ones(1, 3, 9, dtype=torch.float16), torch.full_like(u, -25.0)
    y = selective_scan(u, u, -torch.ones(2, 3), ones, ones, z=z, backend=backend)
    assert y.isfinite().all() and y.abs().max() > 0
    expected = selective_scan(u.double(), u.double(), -torch.ones(2, 3), ones, ones, z=z)
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-7)


def test_steps_in_bfloat16_keep_their_dtypes():
    half = dict.fromkeys(("state", "u"), torch.bfloat16)
    shapes = {"state": (1, 2, 3), "u": (1, 2), "dt": (1, 2), "A": (2, 3), "B": (1, 3), "C": (1, 3)}
    inputs = {name: torch.rand(shape, dtype=half.get(name)) for name, shape in shapes.items()}
    y, state = selective_step(**inputs)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.bfloat16)


def test_mixers_gate_before_they_round():
    grid = (4, 5)
    orders = scan_orders(("snake", "snake_reverse"), grid)
    calls = {
        MambaMixer(8, directions=2): (),
        MambaMixer(8, directions=2, average=True): (),
        PlainMambaMixer(8): (orders, moves_between(orders, grid), grid),
        Mamba3Mixer(8, 4, head_dim=4): (),
    }
    x = torch.randn(2, 20, 8, dtype=torch.float16)
    for mixer, arguments in calls.items():
        inner = mixer.out_proj.in_features
        gate, tokens = (0, inner) if isinstance(mixer, Mamba3Mixer) else (inner, 0)
        with torch.no_grad():
            for parameter in (p for name, p in mixer.named_parameters() if name.endswith(("D", "in_proj.bias"))):
                parameter.fill_(6e4 if parameter.dim() == 1 and len(parameter) != 2 * inner else 0.0)
            mixer.in_proj.weight[gate : gate + inner] = 0.0
            mixer.in_proj.weight[tokens : tokens + inner] *= 100.0
        mixer.half()
        # the scan is beyond float16, the gate is zero
        assert torch.equal(mixer(x, *arguments), mixer(0 * x, *arguments)), type(mixer).__name__


@pytest.mark.parametrize("backend", [*accepting(), "reference"])
def test_a_gate_is_a_product_after_the_scan(backend):
    u, z = torch.randn(2, 2, 7, 3)
    inputs = [u[:, None], -torch.rand(2, 3, 4), *torch.randn(2, 2, 2, 7, 4)]
    orders = scan_orders(["forward", "backward"], 7)
    for merge in (False, True):
        plain = multi_scan(u, *inputs, orders=orders, merge=merge, backend=backend)
        gate = torch.nn.functional.silu(z) if merge else torch.nn.functional.silu(z)[:, None]
        gated = multi_scan(u, *inputs, z=z, orders=orders, merge=merge, backend=backend)
        torch.testing.assert_close(gated, plain * gate)


def test_a_sum_of_directions_has_one_gate():
    u, parameter = torch.ones(1, 7, 3), torch.ones(1, 2, 7, 4)
    with pytest.raises(ValueError, match="the sum of the directions has one gate, got 2"):
        multi_scan(u, u[:, None], -torch.ones(1, 3, 4), parameter, parameter, z=torch.ones(1, 2, 7, 3), merge=True)
