import sys

import numpy as np
import pytest
import torch

from tests.data.videos import brightness, write_video
from transmamba.data import normalise, read_frames
from transmamba.data.video import CLIP_MEAN, CLIP_STD

av = pytest.importorskip("av")


@pytest.fixture(params=["mpeg4 a.mp4", "mpeg4 a.avi", "mpeg4 a.mkv", "libx264 a.mp4"])
def path(request, tmp_path):
    codec, name = request.param.split()  # H.264 stores frames in another order than it shows them
    write_video(tmp_path / name, 20, codec=codec)
    return tmp_path / name


@pytest.mark.parametrize(("frames", "expected"), [(1, [10]), (2, [5, 15]), (4, [2, 7, 12, 17]), (20, list(range(20)))])
def test_frames_are_the_middles_of_equal_parts(path, frames, expected):
    clip = read_frames(path, frames, 16)
    assert clip.shape == (3, frames, 16, 16) and clip.dtype == torch.uint8
    assert brightness(clip) == expected


def test_a_short_video_shows_frames_again(path):
    assert brightness(read_frames(path, 40, 16)) == sorted(2 * list(range(20)))


def test_only_the_first_seconds_are_looked_at(path):
    assert brightness(read_frames(path, 4, 16, seconds=0.8)) == [1, 3, 5, 7]
    assert brightness(read_frames(path, 4, 16, seconds=60)) == [2, 7, 12, 17]


@pytest.mark.parametrize(("width", "height"), [(48, 24), (24, 48)])
def test_the_middle_of_a_frame_is_kept(tmp_path, width, height):
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = (height - 24) // 2, (width - 24) // 2
    picture[top : top + 24, left : left + 24] = (200, 100, 50)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    clip = read_frames(tmp_path / "a.mkv", 1, 24)
    assert torch.equal(clip, torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 24, 24))
    assert read_frames(tmp_path / "a.mkv", 1, 12).shape == (3, 1, 12, 12)


def test_a_missing_file_names_the_video(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"video7: there is no file .*a\.mp4"):
        read_frames(tmp_path / "a.mp4", 2, 16, name="video7")


def test_a_file_that_is_no_video_names_the_video(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"video7: cannot read .*a\.mp4: Invalid data"):
        read_frames(tmp_path / "a.mp4", 2, 16, name="video7")


def test_a_corrupt_frame_names_the_video_and_the_frame(path):
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        # a later packet that opens no picture any more; the containers themselves stay whole
        start, size = content.find(bytes(packets[12])), packets[12].size
    content[start : start + size] = bytes([0]) * size
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"video7: .* (frame \d+ (is corrupt|cannot be decoded)|ends early)"):
        read_frames(path, 20, 16, name="video7")


def test_a_file_that_was_cut_off_names_the_video(path):
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 3])
    with pytest.raises(ValueError, match="video7"):
        read_frames(path, 20, 16, name="video7")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match=r"a\.wav has no frames"):
        read_frames(tmp_path / "a.wav", 2, 16)


def test_numbers_that_make_no_clip_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected at least one frame and one pixel, got frames=0, size=16"):
        read_frames(tmp_path / "a.mp4", 0, 16)


def test_without_pyav_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install transmamba\[video\]"):
        read_frames(tmp_path / "a.mp4", 2, 16)


def test_pixels_have_the_mean_and_deviation_of_clip():
    clip = torch.randint(256, (2, 3, 5, 7, 11), dtype=torch.uint8)
    got = normalise(clip)
    for channel in range(3):
        expected = (clip[:, channel] / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        torch.testing.assert_close(got[:, channel], expected)
