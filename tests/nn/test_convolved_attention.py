"""Attention with a convolution before the heads and an MLP beside them; its numbers are tested in models/official."""

import pytest
import torch

from transmamba.nn import Attention
from transmamba.nn.convolved_attention import ConvolvedAttention
from transmamba.ops import scan_order


def build(**options):
    return ConvolvedAttention(8, 2, **{"d_conv": 3, "hidden_dim": 5, "rope": {"rope_theta": 10.0}} | options).double()


def test_without_its_additions_it_is_causal_attention():
    ours, plain = build(d_conv=None, hidden_dim=0), Attention(8, 2, causal=True, rope={"rope_theta": 10.0}).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)


def test_gradients():
    mixer, x = build(), torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,))


@pytest.mark.parametrize("d_conv", [None, 1, 3])
def test_steps_give_what_the_parallel_pass_gives_and_leave_the_cache(d_conv):
    mixer, x = build(d_conv=d_conv).eval(), torch.randn(2, 6, 8, dtype=torch.float64)
    expected, cache = mixer(x), mixer.empty_cache(2)
    for t in range(6):
        before = cache.conv.clone()
        y, after = mixer.step(x[:, t], cache)
        assert torch.equal(cache.conv, before)
        torch.testing.assert_close(y, expected[:, t], rtol=1e-12, atol=1e-12)
        cache = after


def test_a_later_token_influences_no_earlier_one_and_the_order_says_which_is_later():
    mixer, x = build(), torch.randn(1, 5, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, 3] += 1
    for name, kept in (("forward", slice(0, 3)), ("backward", slice(4, 5))):
        order = [scan_order(name, 5)]
        torch.testing.assert_close(mixer(x, order)[:, kept], mixer(changed, order)[:, kept], rtol=0, atol=0)


def test_padding_may_hold_anything_and_gives_the_bias():
    mixer, x = build(), torch.randn(1, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[False, True, True, True, False]])
    dirty = x.masked_fill(~mask[..., None], torch.nan)
    with torch.no_grad():
        y = mixer(dirty, mask=mask)
        torch.testing.assert_close(y[:, 1:4], mixer(x[:, 1:4]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(y[0, [0, 4]], mixer.proj.bias.expand(2, -1), rtol=0, atol=0)
        mixed, parts = mixer.forward_directions(dirty, mask=mask)
    torch.testing.assert_close(parts[0] + mixer.proj.bias, mixed)
    mixer(dirty, mask=mask).sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_a_wrong_width_is_refused():
    with pytest.raises(ValueError, match="hidden_dim"):
        ConvolvedAttention(8, 2, hidden_dim=-1)
    with pytest.raises(ValueError, match="d_conv"):
        ConvolvedAttention(8, 2, d_conv=0)
    with pytest.raises(ValueError, match="8"):
        build()(torch.zeros(1, 2, 7, dtype=torch.float64))
