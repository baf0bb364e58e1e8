"""Properties of every mixer that decodes."""

import pytest
import torch

from transmamba.nn import HeadSSM, Mamba2Mixer, Mamba3Mixer, MambaMixer
from transmamba.ops import scan_order

DIM = 6
MIXERS = {
    "mamba": lambda: MambaMixer(DIM, 5, d_conv=3),
    "mamba, wide kernel": lambda: MambaMixer(DIM, 5, d_conv=7, bias=True, conv_bias=False),
    "mamba2": lambda: Mamba2Mixer(DIM, 5, head_dim=4),
    "mamba3": lambda: Mamba3Mixer(DIM, 5, head_dim=2, groups=3),
    "mamba2, groups": lambda: Mamba2Mixer(
        DIM, bias=True, ssm=HeadSSM(6, 2, d_state=3, groups=3, channel_skip=True, dt_limit=(0.1, 0.4), chunk_size=4)
    ),
}
mixers = pytest.mark.parametrize("build", MIXERS.values(), ids=MIXERS.keys())


@mixers
def test_steps_from_nothing_give_the_parallel_pass(build):
    mixer, x = build().double(), torch.randn(2, 11, DIM, dtype=torch.float64)
    cache, outputs = mixer.empty_cache(2), []
    for token in x.unbind(1):
        y, cache = mixer.step(token, cache)
        outputs.append(y)
    whole, after = mixer.prefill(x)
    torch.testing.assert_close(whole, mixer(x))
    torch.testing.assert_close((torch.stack(outputs, 1), *cache), (whole, *after))


@mixers
def test_prefill_in_pieces_is_prefill_at_once(build):
    mixer, x = build().double(), torch.randn(2, 11, DIM, dtype=torch.float64)
    whole, after = mixer.prefill(x)
    cache, outputs = None, []
    for piece in x.split((1, 2, 5, 3), 1):
        y, cache = mixer.prefill(piece, cache=cache)
        outputs.append(y)
    torch.testing.assert_close((torch.cat(outputs, 1), *cache), (whole, *after))


@mixers
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_the_cache_as_it_is(build, side):
    mixer, lengths = build().double(), torch.tensor([[7], [2], [5]])
    place = torch.arange(7) if side == "right" else torch.arange(7).flip(0)
    mask, x = place < lengths, torch.randn(3, 7, DIM, dtype=torch.float64)
    y, cache = mixer.prefill(x, mask)
    for b in range(3):
        alone, after = mixer.prefill(x[b, mask[b]][None])
        torch.testing.assert_close((y[b, mask[b]], *(x[b] for x in cache)), (alone[0], *(x[0] for x in after)))


@mixers
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_packed_sequences_are_mixed_as_if_alone(build, order):
    mixer, lengths, x = build().double(), (4, 1, 6), torch.randn(2, 11, DIM, dtype=torch.float64)
    seq_idx = torch.repeat_interleave(torch.tensor([3, 0, 3]), torch.tensor(lengths)).expand(2, -1)
    packed = mixer(x, [scan_order(order, 11)], seq_idx=seq_idx)
    alone = [mixer(part, [scan_order(order, part.shape[1])]) for part in x.split(lengths, 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1))
    torch.testing.assert_close(mixer.forward_directions(x, [scan_order(order, 11)], seq_idx=seq_idx)[0], packed)


@mixers
def test_a_step_leaves_the_cache_it_was_given_alone(build):
    mixer = build()
    _, cache = mixer.prefill(torch.randn(2, 5, DIM))
    before = [x.clone() for x in cache]
    mixer.step(torch.randn(2, DIM), cache)
    assert all(torch.equal(x, y) for x, y in zip(cache, before, strict=True))


@mixers
def test_the_state_stays_float32_in_a_bfloat16_mixer(build):
    mixer = build().bfloat16()
    y, cache = mixer.prefill(torch.randn(2, 5, DIM, dtype=torch.bfloat16))
    step, cache = mixer.step(y[:, -1], cache)
    assert (y.dtype, step.dtype, cache.state.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_decoding_needs_one_direction():
    with pytest.raises(ValueError, match="needs a mixer of 1 direction, this one has 2"):
        MambaMixer(DIM, directions=2).prefill(torch.zeros(1, 3, DIM))
