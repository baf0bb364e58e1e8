import pytest
import torch

from tests.benchmarks.glyphs import CLASSES, TEST_FONTS, TRAIN_FONTS, distort, draw, glyphs


def test_fonts_of_training_and_test_are_apart():
    assert len(set(TRAIN_FONTS) | set(TEST_FONTS)) == len(TRAIN_FONTS) + len(TEST_FONTS) == 21
    assert len(set(CLASSES)) == 62


@pytest.mark.parametrize("font", TRAIN_FONTS + TEST_FONTS)
def test_every_class_leaves_ink_inside_the_frame(font):
    letters = draw(font)
    assert letters.shape == (62, 48, 48)
    assert letters.flatten(1).sum(1).min() > 20
    # the widest letter of one bold face touches both sides
    frame = torch.cat([letters[:, 0], letters[:, -1], letters[:, :, 0], letters[:, :, -1]], 1)
    assert frame.amax(1).count_nonzero() <= 1


def test_two_letters_of_a_font_differ():
    letters = draw("DejaVuSans").flatten(1)
    assert (torch.cdist(letters, letters) + torch.eye(62)).min() > 0.5


def test_the_seed_decides_and_a_slice_is_a_share():
    images, labels = glyphs(("cmr10",), 2, size=12, seed=3)
    again, same = glyphs(("cmr10",), 2, size=12, seed=3)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert images.shape == (124, 1, 12, 12)
    assert labels.bincount().tolist() == [2] * 62
    assert labels[:62].unique().numel() > 20


def test_paper_is_minus_one_and_ink_one():
    calm = distort(torch.ones(3, 48, 48), 12, torch.Generator().manual_seed(0), noise=0.0)
    assert calm[:, :, 4:8, 4:8].min() > 0.99
    assert distort(torch.zeros(3, 48, 48), 12, torch.Generator().manual_seed(0), noise=0.0).max() == -1


def test_an_unknown_font_is_refused():
    with pytest.raises(FileNotFoundError, match=r"matplotlib ships no font 'Papyrus': the names are those of .*ttf"):
        draw("Papyrus")
