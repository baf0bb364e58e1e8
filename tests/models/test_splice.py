import pytest
import torch

from transmamba.models.splice import IGNORE_INDEX, IMAGE_TOKEN_INDEX, Chosen, check_images, splice

IMG = IMAGE_TOKEN_INDEX
# two images, none and one
IDS = torch.tensor([[1, IMG, 2, IMG, 3, 4, 5], [6, 7, 8, 9, 0, 0, 0], [1, IMG, 3, 2, 4, 0, 0]])
MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [True] * 5 + [False] * 2])
LABELS = torch.full_like(IDS, IGNORE_INDEX)
LABELS[0, 5:], LABELS[1, 3], LABELS[2, 3:5] = torch.tensor([4, 5]), 9, torch.tensor([2, 4])


def test_patches_stand_where_their_placeholder_stood():
    text, patches = torch.randn(3, 7, 5), torch.randn(3, 2, 5)
    spliced = splice(IDS, text, patches, MASK, LABELS, "right")
    expected = [
        torch.cat([text[0, :1], patches[0], text[0, 2:3], patches[1], text[0, 4:]]),
        text[1, :4],
        torch.cat([text[2, :1], patches[2], text[2, 2:5]]),
    ]
    for sample, tokens in enumerate(expected):
        assert torch.equal(spliced.tokens[sample, spliced.mask[sample]], tokens)
    assert spliced.mask.sum(1).tolist() == [9, 4, 6] and spliced.image.sum(1).tolist() == [4, 0, 2]
    assert spliced.labels[0, 7:].tolist() == [4, 5] and (spliced.labels[0, :7] == IGNORE_INDEX).all()
    assert (spliced.labels[~spliced.mask] == IGNORE_INDEX).all()
    assert spliced.question.sum(1).tolist() == [3, 3, 2]


def test_left_and_right_padding_hold_the_same_tokens():
    text, patches = torch.randn(3, 7, 5), torch.randn(3, 2, 5)
    right = splice(IDS, text, patches, MASK, LABELS, "right")
    # prompts that come padded on the left
    flipped = [torch.stack([x[b].roll(int((~MASK[b]).sum()), 0) for b in range(3)]) for x in (IDS, text, MASK, LABELS)]
    left = splice(flipped[0], flipped[1], patches, flipped[2], flipped[3], "left")
    assert bool(left.mask[:, -1].all())
    for field in ("tokens", "image", "question", "labels"):
        assert torch.equal(getattr(left, field)[left.mask], getattr(right, field)[right.mask])


def test_chosen_tokens_go_back_to_their_place():
    x, mask = torch.randn(2, 5, 3), torch.tensor([[True, False, True, False, True], [False, False, True, False, False]])
    chosen = Chosen.of(mask)
    assert torch.equal(chosen.take(x)[chosen.mask], x[mask])
    moved = chosen.put(x, chosen.take(x) + 1)
    torch.testing.assert_close(moved, x + mask[..., None])
    nothing = Chosen.of(torch.zeros(2, 5, dtype=torch.bool))
    assert nothing.take(x).shape == (2, 1, 3) and torch.equal(nothing.put(x, nothing.take(x) + 1), x)


def test_what_is_no_image_is_refused():
    with pytest.raises(TypeError, match="images of sample 1 are a list: expected a tensor of four axes"):
        check_images(IDS[:2], MASK[:2], [torch.zeros(2, 3, 8, 12), []])
