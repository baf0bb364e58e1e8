from pathlib import Path

import pytest
import torch

from transmamba.data import LLAMA_3, VICUNA, Conversation, Template, Turn, collate, encode
from transmamba.data import conversation as module
from transmamba.models import splice

PLAIN = Template("^", "[", "]", "|", "$")


def letters(text):
    return [ord(x) for x in text]


def text_of(ids):
    return "".join("@" if i == module.IMAGE_TOKEN_INDEX else chr(i) for i in ids)


def talk(*texts, images=1):
    turns = tuple(Turn(("human", "gpt")[i % 2], text) for i, text in enumerate(texts))
    return Conversation("cat-7", tuple(Path(f"{i}.png") for i in range(images)), turns)


def test_loaders_and_model_mean_the_same_numbers():
    assert module.IMAGE_TOKEN_INDEX == splice.IMAGE_TOKEN_INDEX and module.IGNORE_INDEX == splice.IGNORE_INDEX


def test_only_answers_and_their_ends_are_learned():
    ids, labels = encode(talk("<image>what?", "cat", "and <image>?", "dog", images=2), letters, PLAIN)
    assert text_of(ids.tolist()) == "^[@what?|]cat$[and @?|]dog$"
    assert text_of(labels[labels != module.IGNORE_INDEX].tolist()) == "cat$dog$"
    assert torch.equal(ids[labels != module.IGNORE_INDEX], labels[labels != module.IGNORE_INDEX])


def test_a_conversation_that_ends_with_the_human_is_a_prompt():
    ids, labels = encode(talk("<image>what?"), letters, PLAIN)
    assert text_of(ids.tolist()) == "^[@what?|]" and (labels == module.IGNORE_INDEX).all()


def test_templates_are_those_of_the_models():
    said = talk("hi", "yes", images=0)
    assert text_of(encode(said, letters, VICUNA).ids.tolist()).endswith("questions. USER: hi ASSISTANT: yes</s>")
    assert text_of(encode(said, letters, LLAMA_3).ids.tolist()) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>"
    )


@pytest.mark.parametrize("padding", ["right", "left"])
def test_batches_are_padded_on_the_side_asked_for(padding):
    samples = [encode(talk("<image>" + "x" * n, "yz"), letters, PLAIN) for n in (1, 4)]
    images = [torch.randn(1, 3, 5, 5) for _ in samples]
    batch = collate([(s, i, f"{n}") for n, (s, i) in enumerate(zip(samples, images, strict=True))], padding=padding)
    assert batch.names == ("0", "1") and batch.images[1] is images[1]
    for number, sample in enumerate(samples):
        assert torch.equal(batch.ids[number, batch.mask[number]], sample.ids)
        assert torch.equal(batch.labels[number, batch.mask[number]], sample.labels)
    assert not batch.ids[~batch.mask].any() and (batch.labels[~batch.mask] == module.IGNORE_INDEX).all()
    assert bool(batch.mask[:, -1 if padding == "left" else 0].all())


def test_long_samples_are_cut_but_keep_their_images():
    sample = encode(talk("abc<image>", "d"), letters, PLAIN)
    empty = torch.zeros(1, 3, 5, 5)
    assert collate([(sample, empty, "cat-7")], max_length=6).ids.shape == (1, 6)
    with pytest.raises(ValueError, match="cut to 5 tokens, sample cat-7 would lose an image"):
        collate([(sample, empty, "cat-7")], max_length=5)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (talk(), "sample cat-7 has no turns"),
        (talk("hm", "x"), "sample cat-7 has 0 times <image> and 1 images"),
        (talk("<image>", "<image>", images=2), "turn 1 of sample cat-7 answers with <image>"),
        (
            Conversation("cat-7", (), (Turn("gpt", "x"),)),
            "turn 0 of sample cat-7 is by 'gpt': expected 'human'",
        ),
    ],
)
def test_conversations_that_do_not_fit_are_named(sample, message):
    with pytest.raises(ValueError, match=message):
        encode(sample, letters, PLAIN)
