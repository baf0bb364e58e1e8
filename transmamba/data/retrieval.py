"""Text-video retrieval benchmarks: the annotation files of MSR-VTT and DiDeMo, and a data set over them."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transmamba._typing import typed
from transmamba.data.video import read_frames


class VideoCaptions(NamedTuple):
    """A video and its captions."""

    name: str
    path: Path
    captions: tuple[str, ...]


@typed
def msr_vtt(
    split: str | Path, videos: str | Path, annotations: str | Path | None = None, *, suffix: str = ".mp4"
) -> list[VideoCaptions]:
    """List the videos of MSR-VTT in the order of a split file, each with its captions.

    The usual protocol trains on `MSRVTT_train.9k.csv`, whose captions (20 per video) stand in `MSRVTT_data.json`, and
    tests on the 1k-A split, `MSRVTT_JSFUSION_test.csv`, which has one sentence per video in the file itself.

    Args:
        split: csv with a column `video_id`, and `sentence` where the captions stand in it.
        videos: folder of the files, named by `video_id`.
        annotations: json with `sentences`, each with `video_id` and `caption`; needed if the csv has no sentences.
        suffix: ending of the files.

    Raises:
        ValueError: a file lacks a column or key, or a video has no caption; the message names it.

    Reference:
        MSR-VTT, CVPR 2016; the splits 9k and 1k-A are those of CLIP4Clip, arXiv 2104.08860.
    """
    with Path(split).open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "video_id" not in rows[0]:
        raise ValueError(f"{split} has no column video_id: expected a split of MSR-VTT")
    captions: dict[str, list[str]] = {}
    if annotations is not None:
        for sentence in _entry(_json(annotations), "sentences", annotations):
            captions.setdefault(_entry(sentence, "video_id", annotations), []).append(
                _entry(sentence, "caption", annotations)
            )
    elif "sentence" in rows[0]:
        for row in rows:
            captions.setdefault(row["video_id"], []).append(row["sentence"])
    else:
        raise ValueError(f"{split} has no column sentence: give annotations, the json with the captions")
    names = list(dict.fromkeys(row["video_id"] for row in rows))
    for name in names:
        if name not in captions:
            raise ValueError(f"{name} of {split} has no caption in {annotations}")
    return [VideoCaptions(name, Path(videos) / f"{name}{suffix}", tuple(captions[name])) for name in names]


@typed
def didemo(
    annotations: str | Path, videos: str | Path, names: str | Path | Sequence[str] | None = None
) -> list[VideoCaptions]:
    """List the videos of DiDeMo, each with all its descriptions joined to one paragraph in the order of the file.

    Annotators saw the first 30 seconds of a video: read its frames with `seconds=30`.

    Args:
        annotations: `train_data.json`, `val_data.json` or `test_data.json`: entries with `video`, `description` and
            `times`, of which the last is not needed here.
        videos: folder of the files; `video` names a file in it, whatever ending the file has.
        names: only these videos: a list, or a text file of one name per line.

    Raises:
        ValueError: an entry lacks a field, or a listed video has no entry.

    Reference:
        DiDeMo, arXiv 1708.01641; paragraphs as in CLIP4Clip, 2104.08860.
    """
    paragraphs: dict[str, list[str]] = {}
    for entry in _json(annotations):
        paragraphs.setdefault(_entry(entry, "video", annotations), []).append(
            _entry(entry, "description", annotations).strip()
        )
    if isinstance(names, (str, Path)):
        names = [line.strip() for line in Path(names).read_text().splitlines() if line.strip()]
    chosen = list(paragraphs) if names is None else names
    for name in chosen:
        if name not in paragraphs:
            raise ValueError(f"{name} has no description in {annotations}")
    files = {file.stem: file for file in sorted(Path(videos).iterdir())}
    found = {name: files.get(name, files.get(Path(name).stem, Path(videos) / name)) for name in chosen}
    return [VideoCaptions(name, found[name], (" ".join(paragraphs[name]),)) for name in chosen]


class Pair(NamedTuple):
    """A clip, one of its captions, and the number of the video."""

    clip: Tensor
    caption: str
    video: int


class RetrievalDataset(Dataset[Pair]):
    """One item per caption: the clip, the caption and the video's number.

    For training, batches of items; the numbers say which captions belong together (`ContrastiveLoss`). For a test, each
    video once through `clip(number)`, all of `captions`, and `text_video` for `retrieval_scores`.

    Args:
        samples: the videos.
        frames: frames of a clip.
        size: side of a frame in pixels.
        seconds: only the first seconds of each video; 30 for DiDeMo.

    Attributes:
        captions: of all videos, one after the other.
        text_video: the number of the video of each caption.

    Raises:
        FileNotFoundError: files are missing; the message names the first.
        ValueError: on reading an item, if its video is broken.
    """

    def __init__(
        self, samples: Sequence[VideoCaptions], *, frames: int = 8, size: int = 224, seconds: float | None = None
    ) -> None:
        missing = [sample for sample in samples if not sample.path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{missing[0].name}: there is no file {missing[0].path}; {len(missing)} of {len(samples)} videos are "
                "missing: leave them out with [s for s in samples if s.path.is_file()]"
            )
        self.samples = list(samples)
        self.frames, self.size, self.seconds = frames, size, seconds
        self.captions = [caption for sample in samples for caption in sample.captions]
        counts = torch.tensor([len(sample.captions) for sample in samples], dtype=torch.long)
        self.text_video = torch.arange(len(samples)).repeat_interleave(counts)

    def __len__(self) -> int:
        """Return the number of captions."""
        return len(self.captions)

    def __getitem__(self, index: int) -> Pair:
        """Return the clip of caption `index`, the caption, and the number of its video."""
        video = int(self.text_video[index])
        return Pair(self.clip(video), self.captions[index], video)

    def clip(self, video: int) -> Tensor:
        """Return the frames of a video, bytes `(3, frames, size, size)`; `data.normalise` converts them to floats."""
        sample = self.samples[video]
        return read_frames(sample.path, self.frames, self.size, seconds=self.seconds, name=sample.name)


def _json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not json: {error}") from error


def _entry(record: Any, key: str, path: Any) -> Any:
    if not isinstance(record, Mapping) or key not in record:
        raise ValueError(f"{path}: expected an entry with {key}, got {str(record)[:80]}")
    return record[key]
