import pytest
import torch
import torch.nn.functional as F

from transmamba.nn import Mamba3Mixer, MambaBlock
from transmamba.nn.mamba3 import heavy_tail
from transmamba.ops import scan_order, trapezoidal_scan


@pytest.mark.parametrize("decay", [heavy_tail, F.softplus])
def test_every_part_of_the_projection_goes_where_it_belongs(decay):
    mixer = Mamba3Mixer(6, 8, head_dim=3, groups=2, decay=decay).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    z, u, B, C, dt, rate, blend, theta = mixer.in_proj(x).split([12, 12, 16, 16, 4, 4, 4, 2], -1)

    def by_head(v, norm, bias):
        v = v.view(2, 7, 2, 1, 8)
        v = v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
        return v.expand(-1, -1, -1, 2, -1).reshape(2, 7, 4, 8) + bias[:, 0]

    y, _ = trapezoidal_scan(
        u.view(2, 7, 4, 3),
        F.softplus(dt + mixer.dt_bias),
        -decay(rate).clamp(min=1e-4),
        by_head(B, mixer.B_norm, mixer.B_bias),
        by_head(C, mixer.C_norm, mixer.C_bias),
        blend.sigmoid(),
        (torch.pi * theta.tanh())[:, :, None].expand(-1, -1, 4, -1),
        mixer.D,
    )
    torch.testing.assert_close(mixer(x), (y.flatten(2) * F.silu(z)) @ mixer.out_proj.weight.T)


def test_heavy_tail_is_smooth_and_positive():
    x = torch.tensor([-3.0, 0.0, 2.0], requires_grad=True)
    y = heavy_tail(x)
    torch.testing.assert_close(y, torch.tensor([0.25, 1.0, 3.0]))
    near = torch.tensor([-1e-4, 1e-4], requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(heavy_tail(near).sum(), near)[0], torch.ones(2), atol=1e-3, rtol=0)


def test_it_is_a_mixer_of_a_block_along_any_order():
    block, x = MambaBlock(6, Mamba3Mixer(6, 4, head_dim=4)).double(), torch.randn(2, 7, 6, dtype=torch.float64)
    order, mask = scan_order("backward", 7), torch.arange(7) < torch.tensor([[7], [4]])
    torch.testing.assert_close(block(x, [order], mask.flip(1)), block(x.flip(1), None, mask).flip(1))
    y, parts = block.forward_directions(x, [order])
    torch.testing.assert_close((y, parts[0]), (block(x, [order]), block.mixer(block.norm1(x), [order])))


@pytest.mark.parametrize("wrong", [{"head_dim": 5}, {"head_dim": 4, "groups": 2}, {"d_state": 3, "head_dim": 4}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="expected heads that fill 12 channels, groups that divide them and"):
        Mamba3Mixer(6, **wrong)
