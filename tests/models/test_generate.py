import pytest
import torch

from transmamba.models.generate import next_token

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).log_softmax(-1)


def frequencies(draws=4000, **sampling):
    tokens = next_token(LOGITS.expand(draws, -1), generator=torch.Generator().manual_seed(0), **sampling)
    return tokens.bincount(minlength=4) / draws


def test_temperature_zero_takes_the_most_likely():
    assert next_token(LOGITS, top_k=3).tolist() == [1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_drawn_by_their_probability(temperature):
    expected = (LOGITS[0] / temperature).softmax(-1)
    torch.testing.assert_close(frequencies(temperature=temperature), expected, atol=0.03, rtol=0)


def test_top_k_leaves_the_k_most_likely():
    p = LOGITS[0].exp()
    expected = torch.stack([p[0] * 0, p[1], p[2] * 0, p[3]]) / (p[1] + p[3])
    torch.testing.assert_close(frequencies(temperature=1.0, top_k=2), expected, atol=0.03, rtol=0)


def test_top_p_leaves_the_fewest_that_reach_it():
    p = LOGITS[0].exp()
    enough = float(p[1] + p[3])
    two = torch.stack([p[0] * 0, p[1], p[2] * 0, p[3]]) / (p[1] + p[3])
    torch.testing.assert_close(frequencies(temperature=1.0, top_p=enough - 1e-3), two, atol=0.03, rtol=0)
    assert (frequencies(temperature=1.0, top_p=enough + 1e-3) > 0).tolist() == [False, True, True, True]
    assert frequencies(temperature=1.0, top_p=1e-6).tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(frequencies(temperature=1.0, top_p=1.0), p, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must not be negative, got -1.0"),
        ({"temperature": float("nan")}, "temperature must not be negative, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    ],
)
def test_impossible_sampling_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        next_token(LOGITS, **options)


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"logits of shape \(2, 0\) have no vocabulary to choose from"):
        next_token(torch.zeros(2, 0))
