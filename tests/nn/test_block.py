import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transmamba.nn import DropPath, GatedMlp, MambaBlock, MambaMixer, Mlp
from transmamba.ops import scan_orders


def test_block_is_two_prenorm_residuals():
    block, x = MambaBlock(8), torch.randn(2, 5, 8)
    middle = x + block.mixer(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))


def test_without_mlp_the_second_half_is_gone():
    block, x = MambaBlock(8, mlp=False), torch.randn(2, 5, 8)
    torch.testing.assert_close(block(x), x + block.mixer(block.norm1(x)))
    assert not [name for name, _ in block.named_parameters() if "mlp" in name or "norm2" in name]


def test_mlp_is_linear_gelu_linear():
    mlp, x = Mlp(3, 7), torch.randn(2, 5, 3)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    expected = (hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected)


def test_directions_give_the_same_stream():
    block, x = MambaBlock(8, MambaMixer(8, directions=2)), torch.randn(2, 6, 8)
    orders = scan_orders(("snake", "snake_reverse"), (2, 3))
    stream, parts = block.forward_directions(x, orders)
    torch.testing.assert_close(stream, block(x, orders))
    assert parts.shape == (2, 2, 6, 8)


def test_any_module_can_be_the_mixer_and_the_norm():
    class Mean(nn.Module):
        def forward(self, x, orders, mask):
            return x.mean(1, keepdim=True).expand_as(x)

    block, x = MambaBlock(8, Mean(), norm=nn.RMSNorm, mlp=False), torch.randn(2, 5, 8)
    torch.testing.assert_close(block(x), x + F.rms_norm(x, (8,)).mean(1, keepdim=True).expand_as(x))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop, x = DropPath(0.3), torch.ones(4000, 2)
    y = drop(x)
    kept = y[:, 0] > 0
    assert torch.equal(y[:, 0], y[:, 1])
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.7))
    assert abs(y.mean().item() - 1) < 0.05
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"drop path rate must be in \[0, 1\), got"):
        DropPath(rate)


def test_gated_mlp_takes_value_then_gate_at_a_rounded_width():
    mlp, x = GatedMlp(5, 130), torch.randn(2, 3, 5)
    assert mlp.fc2.in_features == 256
    value, gate = x @ mlp.fc1.weight[:256].T, x @ mlp.fc1.weight[256:].T
    torch.testing.assert_close(mlp(x), (value * gate * gate.sigmoid()) @ mlp.fc2.weight.T)
