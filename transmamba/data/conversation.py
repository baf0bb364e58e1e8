"""Conversations about images as tokens: a template, labels on the answers alone, padded batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from transmamba._typing import typed

IMAGE = "<image>"
IMAGE_TOKEN_INDEX = -200
IGNORE_INDEX = -100

Tokenize = Callable[[str], Sequence[int]]


class Turn(NamedTuple):
    """One message of a conversation; `role` is "human" or "gpt", as in LLaVA's files."""

    speaker: str
    text: str


class Conversation(NamedTuple):
    """A sample: its name for messages, the files of its images in the order of the placeholders, and the turns."""

    name: str
    images: tuple[Path, ...]
    turns: tuple[Turn, ...]


class Template(NamedTuple):
    """The text around the turns.

    Attributes:
        start: before the first turn.
        human: before the human's text.
        gpt: before the answer.
        human_end: after the human's text.
        gpt_end: after the answer, learned with it.
    """

    start: str
    human: str
    gpt: str
    human_end: str
    gpt_end: str


VICUNA = Template(
    "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. ",
    "USER: ",
    "ASSISTANT: ",
    " ",
    "</s>",
)
LLAMA_3 = Template(
    "<|begin_of_text|>",
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
    "<|eot_id|>",
)


class Encoded(NamedTuple):
    """One sample: ids with `IMAGE_TOKEN_INDEX` for an image, labels with `IGNORE_INDEX` on all but answers."""

    ids: Int[Tensor, " text"]
    labels: Int[Tensor, " text"]


def check_turns(name: str, turns: Sequence[Turn], images: int) -> None:
    """Refuse turns that do not alternate, or that do not have a placeholder per image.

    Raises:
        ValueError: as said; the message names the sample.
    """
    if not turns:
        raise ValueError(f"sample {name} has no turns")
    for number, turn in enumerate(turns):
        expected = ("human", "gpt")[number % 2]
        if turn.speaker != expected:
            raise ValueError(f"turn {number} of sample {name} is by {turn.speaker!r}: expected {expected!r}")
        if turn.speaker == "gpt" and IMAGE in turn.text:
            raise ValueError(f"turn {number} of sample {name} answers with {IMAGE}: only a human shows images")
    count = sum(turn.text.count(IMAGE) for turn in turns)
    if count != images:
        raise ValueError(f"sample {name} has {count} times {IMAGE} and {images} images: one stands for each image")


@typed
def encode(conversation: Conversation, tokenize: Tokenize, template: Template) -> Encoded:
    """Tokenise a conversation; one that ends with the human is a prompt, and the template opens the answer.

    Every piece of the template and every turn is tokenised by itself, so that labels begin exactly with an answer.

    Args:
        conversation: the sample.
        tokenize: text to ids without special tokens of its own, but knowing those that the template spells out:
            `lambda text: tokenizer(text, add_special_tokens=False).input_ids`.
        template: the text around the turns.

    Raises:
        ValueError: turns do not alternate, or there is not one placeholder per image.

    Example:
        >>> plain = Template("", "Q", "A", "", ".")
        >>> said = Conversation("7", (Path("cat.png"),), (Turn("human", "<image>?"), Turn("gpt", "cat")))
        >>> encode(said, lambda text: [ord(c) for c in text], plain).labels.tolist()
        [-100, -100, -100, -100, 99, 97, 116, 46]
    """
    check_turns(conversation.name, conversation.turns, len(conversation.images))
    ids, learned = list(tokenize(template.start)), [False] * len(tokenize(template.start))

    def say(text: str, learn: bool) -> None:
        pieces = text.split(IMAGE)
        for number, piece in enumerate(pieces):
            found = [*([IMAGE_TOKEN_INDEX] if number else []), *(tokenize(piece) if piece else [])]
            ids.extend(found)
            learned.extend([learn] * len(found))

    for speaker, text in conversation.turns:
        if speaker == "human":
            say(template.human + text + template.human_end + template.gpt, learn=False)
        else:
            say(text + template.gpt_end, learn=True)
    tokens = torch.tensor(ids, dtype=torch.long)
    return Encoded(tokens, tokens.masked_fill(~torch.tensor(learned, dtype=torch.bool), IGNORE_INDEX))


class Batch(NamedTuple):
    """Padded samples, as `VisionLanguageMamba` takes them; `names` identifies them in messages.

    `images` has one tensor (image, channel, height, width) per sample.
    """

    ids: Int[Tensor, "batch text"]
    mask: Bool[Tensor, "batch text"]
    labels: Int[Tensor, "batch text"]
    images: list[Tensor]
    names: tuple[str, ...]


@typed
def collate(
    samples: Sequence[tuple[Encoded, Tensor, str]],
    *,
    pad_token: int = 0,
    padding: Literal["right", "left"] = "right",
    max_length: int | None = None,
) -> Batch:
    """Join samples (encoded, images, name) of different lengths into one batch.

    Args:
        samples: items of a `ConversationDataset`.
        pad_token: the id of padding; labels are padded with `IGNORE_INDEX`.
        padding: "right" for training, "left" for prompts that are to be continued.
        max_length: cut longer samples behind this many tokens, an image counting as one.

    Raises:
        ValueError: a cut would take an image away; the message names the sample.

    Example:
        >>> two = [Encoded(torch.arange(n), torch.arange(n)) for n in (2, 3)]
        >>> collate([(x, torch.zeros(0, 3, 4, 4), "a") for x in two], padding="left").mask.tolist()
        [[False, True, True], [True, True, True]]
    """
    rows = [_cut(encoded, name, max_length) for encoded, _, name in samples]
    length = max(len(row.ids) for row in rows)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    ids, labels = torch.full((len(rows), length), pad_token), torch.full((len(rows), length), IGNORE_INDEX)
    for number, row in enumerate(rows):
        start = length - len(row.ids) if padding == "left" else 0
        place = slice(start, start + len(row.ids))
        ids[number, place], labels[number, place], mask[number, place] = row.ids, row.labels, True
    return Batch(ids, mask, labels, [images for _, images, _ in samples], tuple(name for _, _, name in samples))


def _cut(encoded: Encoded, name: str, length: int | None) -> Encoded:
    if length is None:
        return encoded
    if bool((encoded.ids[length:] == IMAGE_TOKEN_INDEX).any()):
        raise ValueError(f"cut to {length} tokens, sample {name} would lose an image: choose a longer max_length")
    return Encoded(encoded.ids[:length], encoded.labels[:length])
