import pytest
import torch

from transmamba.models import VideoMamba
from transmamba.models.video_text_mamba import VideoTextMamba, sinusoids


@pytest.fixture
def model():
    return VideoTextMamba(VideoMamba((8, 12), 4, num_frames=3, dim=12, depth=2, num_classes=0), 5).eval()


@pytest.fixture
def clip():
    return torch.randn(2, 3, 3, 8, 12)


def test_seeing_all_is_seeing_without_a_mask(model, clip):
    for got, expected in zip(model(clip, torch.ones(2, 19, dtype=torch.bool)), model(clip), strict=True):
        torch.testing.assert_close(got, expected)


def test_what_is_not_visible_does_not_matter(model, clip):
    visible = torch.ones(2, 19, dtype=torch.bool)
    visible[:, 7:13] = False  # the second frame
    other = clip.clone()
    other[:, :, 1] = 9.0
    for got, expected in zip(model(other, visible), model(clip, visible), strict=True):
        torch.testing.assert_close(got, expected)


def test_frames_are_averaged_apart(model, clip):
    whole = model(clip)
    per_frame = model(clip, per_frame=True).pooled
    cls_token = model.encoder.forward_features(clip).last[:, :1]
    expected = model.pool_norm(cls_token + whole.patches[:, 6:12].mean(1, keepdim=True))
    torch.testing.assert_close(per_frame[:, 1:2], expected)


def test_an_image_is_a_frame_without_a_position_in_time(model, clip):
    with torch.no_grad():
        model.encoder.temporal_pos_embed.normal_()
    pooled = model(clip[:, :, 0]).pooled
    with torch.no_grad():
        model.encoder.temporal_pos_embed.zero_()
    torch.testing.assert_close(model(clip[:, :, 0]).pooled, pooled)


def test_sines_and_cosines_take_turns():
    table, angle = sinusoids(5, 4, like=torch.zeros(1))[3], torch.tensor([3.0, 0.03])
    torch.testing.assert_close(table[0::2], angle.sin())
    torch.testing.assert_close(table[1::2], angle.cos())


def test_uneven_masks_are_refused(model, clip):
    visible = torch.ones(2, 19, dtype=torch.bool)
    visible[0, 3] = False
    with pytest.raises(ValueError, match=r"every sample needs as many visible tokens, got \[18, 19\]"):
        model(clip, visible)
    visible[1, 4] = False
    with pytest.raises(ValueError, match="per_frame needs every token of a frame: leave visible out"):
        model(clip, visible, per_frame=True)
