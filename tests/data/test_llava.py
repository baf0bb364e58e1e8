import json

import pytest
import torch

from transmamba.data import (
    LLAMA_3,
    ConversationDataset,
    collate,
    llava_cot_samples,
    llava_samples,
    read_image,
    reasoning_stages,
)
from transmamba.data.llava import CLIP_MEAN, CLIP_STD
from transmamba.models import BackbonePatches, MambaLM, VisionLanguageMamba, VisionMamba

Image = pytest.importorskip("PIL.Image")


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("a.png", "b.jpg")):
        Image.new("RGB", (8 + 4 * number, 8), (255 * number, 0, 0)).save(tmp_path / "images" / name)
    return tmp_path


def write(folder, entries, lines=False):
    path = folder / "data.json"
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    return path


GOOD = [
    {"id": "one", "image": "a.png", "conversations": turns("<image>\nwhat?", "red", "sure?", "yes")},
    {"id": 2, "image": ["a.png", "b.jpg"], "conversations": turns("<image> or <image>?", "both")},
    {"id": "three", "conversations": turns("hi", "hello")},
]


def letters(text):
    return [ord(x) for x in text]


def test_a_file_becomes_batches(folder):
    samples = llava_samples(write(folder, GOOD), folder / "images")
    assert [sample.name for sample in samples] == ["one", "2", "three"]
    assert [path.name for path in samples[1].images] == ["a.png", "b.jpg"]
    data = ConversationDataset(samples, letters, LLAMA_3, size=6)
    batch = collate([data[i] for i in range(len(data))])
    assert [tuple(x.shape) for x in batch.images] == [(1, 3, 6, 6), (2, 3, 6, 6), (0, 3, 6, 6)]
    assert (batch.ids == -200).sum(1).tolist() == [1, 2, 0] and batch.names == ("one", "2", "three")
    learned = "".join(chr(i) for i in batch.labels[0].tolist() if i != -100)
    assert learned == "red<|eot_id|>yes<|eot_id|>"


def test_a_batch_is_what_the_model_takes(folder):
    samples = llava_samples(write(folder, GOOD), folder / "images")
    data = ConversationDataset(samples, letters, LLAMA_3, size=8)
    batch = collate([data[i] for i in range(len(data))])
    vision = BackbonePatches(VisionMamba(8, 4, dim=7, depth=1, d_state=3), 7)
    model = VisionLanguageMamba(vision, MambaLM(128, 12, depth=2), cross_after=[0])
    output = model(batch.ids, batch.images, batch.mask, batch.labels)
    output.loss().backward()
    assert output.image.sum(1).tolist() == [4, 8, 0]


def test_images_are_squared_with_clips_mean_and_normalised(folder):
    Image.new("RGB", (8, 4), (255, 255, 255)).save(folder / "wide.png")
    pixels = read_image(folder / "wide.png", 8)
    white = (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(pixels[:, 3:5].mean((1, 2)), white, atol=1e-4, rtol=1e-4)
    assert pixels[:, [0, 7]].abs().max() < 0.02  # the mean is zero, up to its rounding to a byte
    torch.testing.assert_close(read_image(Image.open(folder / "wide.png"), 8), pixels)


def cot(answer="<SUMMARY>s</SUMMARY>\n\n<CAPTION>c</CAPTION>\n<REASONING>r\nr</REASONING><CONCLUSION> B </CONCLUSION>"):
    return {"id": "q", "image": "a.png", "conversations": turns("which?", answer)}


def test_lines_of_llava_cot_get_their_image_in_front(folder):
    (sample,) = llava_cot_samples(write(folder, [cot()], lines=True), folder / "images")
    assert sample.turns[0].text == "<image>\nwhich?"
    assert reasoning_stages(sample.turns[1].text) == ("s", "c", "r\nr", "B")


def test_a_stage_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"the answer has no <REASONING>...</REASONING>: it begins with '<SUMMARY>s"):
        reasoning_stages("<SUMMARY>s</SUMMARY><CAPTION>c</CAPTION><REASONING>r")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": "x"}, "sample x of .*data.json has no turns with from and value"),
        ({"conversations": [{"from": "human"}]}, "sample number 0 of .*data.json has no turns with from and value"),
        ({"id": "x", "conversations": turns("<image>")}, "sample x has 1 times <image> and 0 images"),
        ({"id": "x", "image": "a.png", "conversations": turns("hi")}, "sample x has 0 times <image> and 1 images"),
    ],
)
def test_entries_that_do_not_fit_are_named(folder, entry, message):
    with pytest.raises(ValueError, match=message):
        llava_samples(write(folder, [entry]), folder)


def test_other_files_are_refused(folder):
    with pytest.raises(ValueError, match="holds a dict: expected a list of samples"):
        llava_samples(write(folder, {}), folder)
    path = write(folder, [cot()], lines=True)
    path.write_text(path.read_text() + "\n{")
    with pytest.raises(ValueError, match="line 2 of .* is not JSON"):
        llava_cot_samples(path, folder)


def test_a_missing_image_names_its_sample(folder):
    samples = llava_samples(write(folder, [*GOOD, {**GOOD[0], "id": "four", "image": "gone.png"}]), folder / "images")
    with pytest.raises(FileNotFoundError, match=r"sample four: there is no file .*gone.png; 1 images are missing"):
        ConversationDataset(samples, letters, LLAMA_3)
    with pytest.raises(FileNotFoundError):
        read_image(folder / "gone.png")


@pytest.mark.parametrize("damage", [lambda b: b"no image", lambda b: b[: len(b) - 30]])
def test_a_corrupt_image_names_its_sample(folder, damage):
    Image.effect_noise((64, 64), 50).save(folder / "images" / "a.png")
    path = folder / "images" / "a.png"
    path.write_bytes(damage(path.read_bytes()))
    data = ConversationDataset(llava_samples(write(folder, GOOD), folder / "images"), letters, LLAMA_3)
    with pytest.raises(ValueError, match=r"sample one: .*a.png is not a readable image"):
        data[0]
