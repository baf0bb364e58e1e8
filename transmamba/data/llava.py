"""Data of LLaVA and of LLaVA-CoT: their annotation files, and a data set over them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transmamba._typing import typed
from transmamba.data.conversation import IMAGE, Conversation, Encoded, Template, Tokenize, Turn, check_turns, encode

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Reasoning(NamedTuple):
    """The four stages of an answer of LLaVA-CoT."""

    summary: str
    caption: str
    reasoning: str
    conclusion: str


@typed
def llava_samples(annotations: str | Path, images: str | Path) -> list[Conversation]:
    """Read the samples of a file in LLaVA's form, such as `llava_v1_5_mix665k.json`.

    A list of entries with `id`, `conversations` (turns with `from`, human or gpt, and `value`) and, where there are
    images, `image`: a path below `images`, or a list of them, one per "<image>" in the turns.

    Args:
        annotations: the json file.
        images: folder that the paths are relative to.

    Raises:
        ValueError: an entry lacks a field, turns do not alternate, or images and placeholders differ in number; the
            message names the sample.

    Reference:
        LLaVA, arXiv 2304.08485 and 2310.03744.
    """
    entries = json.loads(Path(annotations).read_text())
    if not isinstance(entries, list):
        raise ValueError(f"{annotations} holds a {type(entries).__name__}: expected a list of samples")
    samples = [_sample(entry, number, Path(images), annotations) for number, entry in enumerate(entries)]
    for sample in samples:
        check_turns(sample.name, sample.turns, len(sample.images))
    return samples


@typed
def llava_cot_samples(annotations: str | Path, images: str | Path) -> list[Conversation]:
    """Read the samples of LLaVA-CoT-100k, `train.jsonl`: each line is one entry of LLaVA's form.

    Where no turn has a placeholder, the images stand before the first question.

    Args:
        annotations: the file.
        images: folder that the paths are relative to.

    Raises:
        ValueError: a line is not JSON, or an entry does not fit; the message names line or sample.

    Reference:
        LLaVA-CoT, arXiv 2411.10440. `reasoning_stages` takes an answer apart.
    """
    samples = []
    for number, line in enumerate(Path(annotations).read_text().splitlines()):
        if line.strip():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number + 1} of {annotations} is not JSON: {error}") from None
            sample = _sample(entry, number, Path(images), annotations)
            if sample.turns and not any(IMAGE in turn.text for turn in sample.turns):
                first = sample.turns[0]
                shown = first._replace(text=f"{IMAGE}\n" * len(sample.images) + first.text)
                sample = sample._replace(turns=(shown, *sample.turns[1:]))
            check_turns(sample.name, sample.turns, len(sample.images))
            samples.append(sample)
    return samples


@typed
def reasoning_stages(answer: str) -> Reasoning:
    """Split an answer of LLaVA-CoT into summary, caption, reasoning and conclusion; the conclusion is scored.

    Raises:
        ValueError: a stage is missing, or not closed.

    Example:
        >>> tags = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
        >>> reasoning_stages(" ".join(f"<{tag}> {n} </{tag}>" for n, tag in enumerate(tags))).conclusion
        '3'
    """
    found = []
    for stage in Reasoning._fields:
        tag = stage.upper()
        match = re.search(rf"<{tag}>(.*?)</{tag}>", answer, re.DOTALL)
        if match is None:
            raise ValueError(f"the answer has no <{tag}>...</{tag}>: it begins with {answer[:60]!r}")
        found.append(match[1].strip())
    return Reasoning(*found)


def _sample(entry: Any, number: int, folder: Path, file: str | Path) -> Conversation:
    name = str(entry.get("id", f"number {number}")) if isinstance(entry, dict) else f"number {number}"
    try:
        turns = tuple(Turn(turn["from"], turn["value"]) for turn in entry["conversations"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"sample {name} of {file} has no turns with from and value: {error!r}") from None
    paths = entry.get("image") or []
    return Conversation(name, tuple(folder / path for path in ([paths] if isinstance(paths, str) else paths)), turns)


@typed
def read_image(source: str | Path | Any, size: int = 336) -> Tensor:
    """Read an image in CLIP's format, `(3, size, size)`, normalised.

    It is padded to a square with CLIP's mean colour, as LLaVA-1.5 does, and resized.

    Args:
        source: a file, or an image of Pillow.
        size: side in pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, or a broken one.
        ImportError: Pillow is not installed.
    """
    from PIL import Image

    image = _open(source) if isinstance(source, (str, Path)) else source.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * x) for x in CLIP_MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    square = square.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(size, size, 3).movedim(2, 0) / 255
    return (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def _open(path: str | Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:  # Pillow's word for a broken PNG is SyntaxError
        raise ValueError(f"{path} is not a readable image: {error}") from None


class ConversationDataset(Dataset[tuple[Encoded, Tensor, str]]):
    """Samples as (encoded, images, name), for `collate`.

    Args:
        samples: the result of `llava_samples` or `llava_cot_samples`.
        tokenize: text to ids, see `encode`.
        template: the text around the turns, `VICUNA` or `LLAMA_3`.
        size: side of an image in pixels.

    Raises:
        FileNotFoundError: files are missing; the message names the first sample.
        ValueError: on reading a sample, if one of its images is broken; the message names it.
    """

    def __init__(
        self, samples: Sequence[Conversation], tokenize: Tokenize, template: Template, *, size: int = 336
    ) -> None:
        missing = [(sample, path) for sample in samples for path in sample.images if not path.is_file()]
        if missing:
            sample, path = missing[0]
            raise FileNotFoundError(
                f"sample {sample.name}: there is no file {path}; {len(missing)} images are missing: leave their "
                "samples out with [s for s in samples if all(path.is_file() for path in s.images)]"
            )
        self.samples, self.tokenize, self.template, self.size = list(samples), tokenize, template, size

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Encoded, Tensor, str]:
        """Return the tokens, the images (image, channel, height, width), and the name."""
        sample = self.samples[number]
        try:
            seen = [read_image(path, self.size) for path in sample.images]
        except ValueError as error:
            raise ValueError(f"sample {sample.name}: {error}") from None
        images = torch.stack(seen) if seen else torch.zeros(0, 3, self.size, self.size)
        return encode(sample, self.tokenize, self.template), images, sample.name
