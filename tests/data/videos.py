"""Tiny videos for the tests: frame i of a file is grey, ten times i bright."""

from pathlib import Path

import numpy as np


def write_video(path, frames, *, width=32, height=24, rate=10, codec="mpeg4"):
    """Write a file with so many frames; the container follows the ending."""
    import av

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            grey = np.full((height, width, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        container.mux(stream.encode())


def brightness(clip):
    """Read from each frame of a clip the number of the frame that it shows."""
    return (clip.float().mean((0, 2, 3)) / 10).round().long().tolist()
