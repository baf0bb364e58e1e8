import pytest
import torch
import torch.nn.functional as F

from transmamba.nn import MambaMixer
from transmamba.ops import permute_tokens, scan_order, scan_orders, use_backend


def by_hand(mixer, x, k, order):
    """Run direction k of a mixer on a permuted copy of everything; tokens come out in natural order."""
    branch = mixer.branches[k]
    u, gate = mixer.in_proj(x[:, order.index]).chunk(2, -1)
    width = branch.conv1d.kernel_size[0]
    u = F.silu(branch.conv1d(F.pad(u.mT, (width - 1, 0))).mT)
    return mixer.out_proj(branch.ssm(u) * F.silu(gate))[:, order.inverse]


@pytest.mark.parametrize("names", [("forward",), ("forward", "backward"), ("snake", "column", "diagonal_reverse")])
def test_mixer_is_the_sum_of_its_permuted_directions(names):
    mixer, x = MambaMixer(8, 3, directions=len(names)), torch.randn(2, 6, 8)
    orders = scan_orders(names, (2, 3))
    expected = [by_hand(mixer, x, k, order) for k, order in enumerate(orders)]
    torch.testing.assert_close(mixer(x, orders), sum(expected), rtol=1e-4, atol=1e-6)
    mixed, parts = mixer.forward_directions(x, orders)
    torch.testing.assert_close(parts, torch.stack(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mixed, mixer(x, orders))


def test_parts_leave_out_the_bias_of_the_output_projection():
    mixer, x = MambaMixer(8, 3, directions=2, bias=True), torch.randn(2, 5, 8)
    mixed, parts = mixer.forward_directions(x)
    torch.testing.assert_close(parts.sum(0) + mixer.out_proj.bias, mixed)


def test_default_orders_are_forward_and_backward():
    mixer, x = MambaMixer(8, 3, directions=2), torch.randn(2, 5, 8)
    torch.testing.assert_close(mixer(x), mixer(x, scan_orders(("forward", "backward"), 5)))


def test_forward_mixer_is_causal():
    mixer, x = MambaMixer(8, 3), torch.randn(1, 7, 8)
    changed = x.clone()
    changed[:, 4:] = 0
    torch.testing.assert_close(mixer(x)[:, :4], mixer(changed)[:, :4])


def test_permuting_tokens_and_orders_together_changes_nothing():
    mixer, x = MambaMixer(8, 3), torch.randn(2, 6, 8)
    order = scan_order("antidiagonal", (2, 3))
    torch.testing.assert_close(permute_tokens(mixer(x, [order]), order), mixer(permute_tokens(x, order)))


@pytest.mark.parametrize("real", [slice(0, 5), slice(2, 7)])
def test_padded_is_unpadded(real):
    mixer, x = MambaMixer(8, 3, directions=2), torch.randn(1, 7, 8)
    mask = torch.zeros(1, 7, dtype=torch.bool)
    mask[:, real] = True
    torch.testing.assert_close(mixer(x, mask=mask)[:, real], mixer(x[:, real]))


def test_number_of_orders_must_be_that_of_directions():
    with pytest.raises(ValueError, match="expected 3 scan orders, one per direction, got 2"):
        MambaMixer(8, directions=3)(torch.zeros(1, 4, 8), scan_orders(("forward", "backward"), 4))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_stays_close_to_float32(autocast):
    mixer, x = MambaMixer(8, 3, directions=2), torch.randn(2, 5, 8)
    expected = mixer(x)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            got = mixer(x)
    else:
        got = mixer.bfloat16()(x.bfloat16())
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.01)


def test_compiles_in_one_graph():
    mixer, x = MambaMixer(8, 3, directions=2), torch.randn(2, 5, 8)
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))


def test_backends_agree_through_the_mixer():
    mixer, x = MambaMixer(8, 3, directions=2), torch.randn(2, 5, 8)
    with use_backend("reference"):
        expected = mixer(x)
    torch.testing.assert_close(mixer(x), expected)
