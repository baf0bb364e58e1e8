"""Frames of a video file, evenly spread over it, through PyAV (the extra `video`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from transmamba._typing import typed

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@typed
def read_frames(
    path: str | Path, frames: int, size: int, *, seconds: float | int | None = None, name: str | None = None
) -> UInt8[Tensor, "3 frame size size"]:
    """Read the middle frames of `frames` equal parts of a video, scaled and cut to a square.

    The shorter side is scaled to `size` (bicubic) and the longer one cut on both sides, as CLIP does. A video with
    fewer frames than are wanted shows some of them more than once.

    Args:
        path: the file.
        frames: number of frames wanted.
        size: side of the square in pixels.
        seconds: look at the first seconds only.
        name: name of the video in errors; its path by default.

    Raises:
        ValueError: the file is not a video, ends early, or a frame cannot be decoded; the message names the video.
        FileNotFoundError: there is no such file.
        ImportError: PyAV is not installed.
    """
    av, name, path = _av(), name or str(path), Path(path)
    if frames < 1 or size < 1:
        raise ValueError(f"expected at least one frame and one pixel, got frames={frames}, size={size}")
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no file {path}")
    try:
        with av.open(str(path)) as container:
            total = _count(container, seconds)
        if not total:
            raise ValueError(f"{name}: {path} has no frames")
        wanted = [(2 * part + 1) * total // (2 * frames) for part in range(frames)]
        with av.open(str(path)) as container:
            return _pick(container, wanted, size, f"{name}: {path}", total)
    except av.error.FFmpegError as error:
        raise ValueError(f"{name}: cannot read {path}: {error.strerror}") from error


def _count(container: Any, seconds: float | None) -> int:
    """Count the frames (in the first seconds) without decoding one."""
    if not container.streams.video:
        return 0
    stream = container.streams.video[0]
    times = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
    if seconds is None:
        return len(times)
    known = [time for time in times if time is not None]
    return sum((time - min(known)) * stream.time_base < seconds for time in known)


def _pick(container: Any, wanted: list[int], size: int, name: str, total: int) -> Tensor:
    chosen: dict[int, Tensor] = {}
    for number, frame in enumerate(_decoded(container, name)):
        if number in wanted:
            chosen[number] = _square(frame, size)
        if number >= wanted[-1]:
            return torch.stack([chosen[number] for number in wanted], 1)
    raise ValueError(f"{name} ends early: frame {wanted[-1]} of {total} is not there")


def _decoded(container: Any, name: str) -> Iterator[Any]:
    import av

    frames, number = container.decode(container.streams.video[0]), 0
    while True:
        try:
            frame = next(frames)
        except (StopIteration, av.error.EOFError):
            return
        except av.error.FFmpegError as error:
            raise ValueError(f"{name}: frame {number} cannot be decoded: {error.strerror}") from error
        if frame.is_corrupt:
            raise ValueError(f"{name}: frame {number} is corrupt")
        yield frame
        number += 1


def _square(frame: Any, size: int) -> Tensor:
    scale = size / min(frame.width, frame.height)
    width, height = (max(size, round(side * scale)) for side in (frame.width, frame.height))
    pixels = frame.reformat(width, height, format="rgb24", interpolation="BICUBIC").to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    return torch.from_numpy(pixels[top : top + size, left : left + size].copy()).permute(2, 0, 1)


@typed
def normalise(
    clip: UInt8[Tensor, "*batch channel frame height width"],
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
) -> Float[Tensor, "*batch channel frame height width"]:
    """Normalise pixels from 0 to 255 by CLIP's mean and deviation per channel.

    Example:
        >>> normalise(torch.zeros(1, 2, 1, 1, dtype=torch.uint8), (0.5,), (0.25,)).flatten()
        tensor([-2., -2.])
    """
    offset, scale = (torch.tensor(values, device=clip.device).view(-1, 1, 1, 1) for values in (mean, std))
    return (clip / 255 - offset) / scale


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise ImportError("reading videos needs PyAV: pip install transmamba[video]") from None
    return av
