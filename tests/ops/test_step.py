import math

import pytest
import torch

from tests.golden import golden
from transmamba.ops import selective_scan, selective_step

OPS = golden("ops_a")
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def test_step_is_one_turn_of_the_recurrence():
    state, u, dt, A, B, C, D = 0.5, 2.0, -0.3, -1.5, 0.7, -0.9, 1.1
    step = math.log(1 + math.exp(dt + 0.2))
    after = math.exp(step * A) * state + step * B * u
    tensors = [torch.tensor([[x]]) for x in (u, dt, A, B, C)]
    y, got = selective_step(
        torch.tensor([[[state]]]), *tensors, torch.tensor([D]), dt_bias=torch.tensor([0.2]), dt_softplus=True
    )
    torch.testing.assert_close((y.item(), got.item()), (C * after + D * u, after))


@DTYPES
def test_step_is_the_official_one_and_leaves_its_input_alone(dtype):
    given = OPS.part("state_update/in", dtype)
    given["u"], state = given.pop("x"), given["state"].clone()
    y, after = selective_step(**given, dt_softplus=True)
    OPS.check("state_update/out/y", y)
    OPS.check("state_update/out/state", after)
    assert torch.equal(given["state"], state)


@DTYPES
def test_heads_are_groups_of_channels(dtype):
    given = OPS.part("state_update_heads/in", dtype)
    flat = {name: given[name].flatten(1, 2) for name in ("state", "dt")}
    y, after = selective_step(
        u=given["x"].flatten(1, 2),
        A=given["A"].flatten(0, 1),
        B=given["B"],
        C=given["C"],
        D=given["D"].flatten(),
        dt_bias=given["dt_bias"].flatten(),
        dt_softplus=True,
        **flat,
    )
    OPS.check("state_update_heads/out/y", y.view(2, 4, 3))
    OPS.check("state_update_heads/out/state", after.view(2, 4, 3, 5))


@pytest.mark.parametrize("groups", [None, 1, 3])
def test_steps_give_what_the_scan_gives(groups):
    shape = (2, 5, 7) if groups is None else (2, groups, 5, 7)
    u, dt, z = torch.randn(3, 2, 6, 7)
    B, C, A, D, bias = torch.randn(shape), torch.randn(shape), -torch.rand(6, 5), torch.randn(6), torch.randn(6)
    expected = selective_scan(u, dt, A, B, C, D, z, bias, True, True)
    state, outputs = torch.zeros(2, 6, 5), []
    for t in range(7):
        token = [x[..., t] for x in (u, dt, B, C, z)]
        y, state = selective_step(state, *token[:2], A, *token[2:4], D, token[4], bias, True)
        outputs.append(y)
    torch.testing.assert_close((torch.stack(outputs, -1), state), expected)


def test_bfloat16_tokens_meet_a_float32_state():
    y, state = selective_step(
        torch.zeros(1, 2, 3),
        *torch.ones(2, 1, 2, dtype=torch.bfloat16),
        -torch.ones(2, 3),
        *torch.ones(2, 1, 3, dtype=torch.bfloat16),
    )
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="groups of B and C must divide the channels: got 2 groups, 3 channels"):
        selective_step(
            torch.zeros(1, 3, 5), torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(3, 5), *torch.zeros(2, 1, 2, 5)
        )
