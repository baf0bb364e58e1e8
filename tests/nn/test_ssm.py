import pytest
import torch
import torch.nn.functional as F

from transmamba.nn import SelectiveSSM
from transmamba.ops import selective_scan


def test_forward_is_the_projections_and_a_selective_scan():
    ssm, u = SelectiveSSM(6, 3, dt_rank=2), torch.randn(2, 7, 6)
    low, B, C = (u @ ssm.x_proj.weight.T).split([2, 3, 3], -1)
    delta = low @ ssm.dt_proj.weight.T + ssm.dt_bias
    A = -torch.exp(ssm.A_log)
    expected = selective_scan(u.mT, delta.mT, A, B.mT, C.mT, ssm.D, delta_softplus=True).mT
    torch.testing.assert_close(ssm(u), expected)


def test_initial_steps_spread_over_their_range_on_a_log_scale():
    ssm = SelectiveSSM(5000, 2, dt_rank=1)
    steps = F.softplus(ssm.dt_bias)
    assert steps.min() >= 0.99e-3 and steps.max() <= 1.01e-1
    assert 0.45 < (steps < 1e-2).float().mean() < 0.55


def test_initial_decays_count_the_states():
    ssm = SelectiveSSM(3, 4, dt_rank=1)
    torch.testing.assert_close(torch.exp(ssm.A_log), torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(3, 4))
    assert (ssm.D == 1).all()


def test_meta_then_reset_has_the_initial_values():
    with torch.device("meta"):
        ssm = SelectiveSSM(3, 4, dt_rank=1)
    ssm.to_empty(device="cpu").reset_parameters()
    torch.manual_seed(3)
    ssm.reset_parameters()
    torch.manual_seed(3)
    direct = SelectiveSSM(3, 4, dt_rank=1)
    direct.load_state_dict(direct.state_dict())
    torch.manual_seed(3)
    direct.reset_parameters()
    for name, value in direct.state_dict().items():
        torch.testing.assert_close(ssm.state_dict()[name], value, msg=name)


def test_masked_tokens_influence_no_other():
    ssm, u = SelectiveSSM(6, 3, dt_rank=2), torch.randn(1, 7, 6)
    mask = torch.tensor([[True, True, False, True, True, False, True]])
    torch.testing.assert_close(ssm(u, mask)[mask], ssm(u[mask][None])[0])


def test_wrong_width_is_refused_by_name():
    with pytest.raises(TypeError, match=r"(?s)mask.*length=7"):
        SelectiveSSM(6, 3, dt_rank=2)(torch.randn(2, 7, 6), torch.ones(2, 5, dtype=torch.bool))
