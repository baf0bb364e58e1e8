import math

import pytest
import torch
from torch import nn

from transmamba.models import LogitScale, MeanPooling, SequentialHead, TemporalMamba, TemporalTransformer, TightHead

TEMPORAL = {"mamba": lambda: TemporalMamba(6, depth=1), "transformer": lambda: TemporalTransformer(6, depth=1, heads=2)}
HEADS = {"mean": MeanPooling, "tight": lambda: TightHead(6)} | {
    name: lambda make=make: SequentialHead(6, make()) for name, make in TEMPORAL.items()
}


def trained(head):
    """Build a head whose zero start is over."""
    for parameter in head.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.5)
    return head.eval()


@pytest.fixture
def batch():
    """Return texts of up to 7 tokens, videos of up to 5 frames."""
    text, tokens, frames = torch.randn(3, 6), torch.randn(3, 7, 6), torch.randn(4, 5, 6)
    token_mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    frame_mask = torch.arange(5) < torch.tensor([[5], [3], [1], [5]])
    return text, frames, frame_mask, tokens, token_mask


def test_mean_pooling_by_hand(batch):
    text, frames, frame_mask, *_ = batch
    got = MeanPooling()(text, frames, frame_mask)
    for i in range(3):
        for j in range(4):
            real = frames[j, frame_mask[j]]
            mean = (real / real.norm(dim=1, keepdim=True)).mean(0)
            torch.testing.assert_close(got[i, j], torch.cosine_similarity(text[i], mean, 0))


@pytest.mark.parametrize("name", HEADS)
def test_a_new_head_is_mean_pooling(name, batch):
    torch.testing.assert_close(HEADS[name]()(*batch), MeanPooling()(*batch))


@pytest.mark.parametrize("name", HEADS)
def test_padding_does_not_matter(name, batch):
    text, frames, frame_mask, tokens, token_mask = batch
    head = trained(HEADS[name]())
    similarity = head(*batch)
    frames = torch.where(frame_mask[..., None], frames, 9.0)
    tokens = torch.where(token_mask[..., None], tokens, 9.0)
    torch.testing.assert_close(head(text, frames, frame_mask, tokens, token_mask), similarity)
    short = head(text[2:], frames[1:2, :3], None, tokens[2:, :2])
    torch.testing.assert_close(short[0, 0], similarity[2, 1])


@pytest.mark.parametrize("name", HEADS)
def test_each_pair_is_compared_by_itself(name, batch):
    text, frames, frame_mask, tokens, token_mask = batch
    head = trained(HEADS[name]())
    pair = head(text[1:2], frames[3:], frame_mask[3:], tokens[1:2], token_mask[1:2])
    torch.testing.assert_close(pair[0, 0], head(*batch)[1, 3])


@pytest.mark.parametrize("name", HEADS)
def test_similarities_are_cosines(name, batch):
    similarity = trained(HEADS[name]())(*batch)
    assert (similarity.abs() <= 1 + 1e-6).all()
    text, frames, *rest = batch
    torch.testing.assert_close(MeanPooling()(3 * text, 2 * frames, *rest), MeanPooling()(*batch))


@pytest.mark.parametrize("name", HEADS)
def test_only_a_sequential_head_knows_the_order_of_frames(name, batch):
    text, frames, _, tokens, token_mask = batch
    head = trained(HEADS[name]())
    turned = head(text, frames.flip(1), None, tokens, token_mask)
    same = torch.allclose(turned, head(text, frames, None, tokens, token_mask), atol=1e-5)
    assert same == (name in ("mean", "tight"))


def test_the_tight_head_reads_the_words(batch):
    text, frames, frame_mask, tokens, token_mask = (x.double() if x.is_floating_point() else x for x in batch)
    head = trained(TightHead(6)).double()
    other = tokens.clone()
    other[0, 2] = torch.randn(6)
    change = head(text, frames, frame_mask, other, token_mask) - head(text, frames, frame_mask, tokens, token_mask)
    assert change[0].abs().min() > 1e-7 and change[1:].abs().max() < 1e-12


@pytest.mark.parametrize("name", HEADS)
def test_a_video_without_frames_is_like_nothing(name, batch):
    text, frames, frame_mask, tokens, token_mask = batch
    frame_mask[2] = False
    assert not trained(HEADS[name]())(text, frames, frame_mask, tokens, token_mask)[:, 2].any()


@pytest.mark.parametrize("name", HEADS)
def test_gradients_of_the_heads(name):
    head = trained(HEADS[name]()).double()
    inputs = [torch.randn(*shape, 6, dtype=torch.float64, requires_grad=True) for shape in ((2,), (2, 3), (2, 3))]
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def similarity(text, frames, tokens):
        # without the tokens, of which only the tight head has a gradient, the others' would be undefined
        return head(text, frames, mask, tokens, mask) + 0 * tokens.sum()

    assert torch.autograd.gradcheck(similarity, inputs)


def test_the_tight_head_needs_tokens(batch):
    with pytest.raises(ValueError, match="the tight head reads the tokens of the text: give tokens"):
        TightHead(6)(*batch[:3])


def test_frames_that_do_not_fit_the_transformer_are_refused():
    with pytest.raises(ValueError, match="built for at most 4 frames, got 5"):
        TemporalTransformer(6, depth=1, heads=2, max_frames=4)(torch.zeros(2, 5, 6))
    with pytest.raises(ValueError, match="frames has 7 channels, the module was built for 6"):
        TemporalTransformer(6, depth=1, heads=2)(torch.zeros(2, 3, 7))
    with pytest.raises(ValueError, match="heads must divide the width of the frames, got 4 heads for 6 channels"):
        TemporalTransformer(6, heads=4)


def test_the_scale_stays_below_its_bound_and_can_come_back():
    scale, similarity = LogitScale(99.0), torch.ones(1, 1)
    optimizer = torch.optim.SGD(scale.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        (-scale(similarity)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(scale(similarity).item(), 100.0)
    reached = scale.log_scale.item()
    scale.zero_grad()
    scale(similarity).sum().backward()
    optimizer.step()
    assert math.log(100) < reached and scale.log_scale.item() < reached


def test_gradient_of_the_scale():
    scale = LogitScale(7.0).double()
    assert torch.autograd.gradcheck(scale, torch.randn(2, 3, dtype=torch.float64, requires_grad=True))
    scale(torch.ones(1, 1, dtype=torch.float64)).backward()
    torch.testing.assert_close(scale.log_scale.grad.item(), 7.0, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{"start": 0.0}, {"start": 101.0}, {"start": 3.0, "largest": 2.0}])
def test_a_scale_outside_its_bounds_is_refused(options):
    with pytest.raises(ValueError, match="expected 0 < start <= largest"):
        LogitScale(**options)
