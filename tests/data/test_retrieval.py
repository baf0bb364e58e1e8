import json

import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.videos import brightness, write_video
from transmamba.data import RetrievalDataset, VideoCaptions, didemo, msr_vtt


@pytest.fixture
def msr_vtt_files(tmp_path):
    sentences = [("video3", "a cat"), ("video1", "a dog"), ("video3", "the cat, again"), ("video2", "unused")]
    data = {
        "videos": [{"video_id": f"video{number}", "split": "train"} for number in (1, 2, 3)],
        "sentences": [{"video_id": name, "caption": text, "sen_id": i} for i, (name, text) in enumerate(sentences)],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "train.csv").write_text("video_id\nvideo3\nvideo1\n")
    (tmp_path / "test.csv").write_text(
        'key,vid_key,video_id,sentence\nret0,msr1,video9,"a man, who runs"\nret1,msr2,video8,a woman\n'
    )
    return tmp_path


@pytest.fixture
def didemo_files(tmp_path):
    entries = [
        {"video": "b_2.avi", "description": "the cat jumps ", "times": [[1, 1]], "annotation_id": 1},
        {"video": "a_1.mov", "description": "a dog", "times": [[0, 0]], "annotation_id": 2},
        {"video": "b_2.avi", "description": "it sits", "times": [[0, 0]], "annotation_id": 3},
    ]
    (tmp_path / "test_data.json").write_text(json.dumps(entries))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "b_2.mp4").touch()
    return tmp_path


def test_msr_vtt_trains_on_the_captions_of_the_json(msr_vtt_files):
    got = msr_vtt(msr_vtt_files / "train.csv", "videos", msr_vtt_files / "data.json")
    assert [(sample.name, sample.captions) for sample in got] == [
        ("video3", ("a cat", "the cat, again")),
        ("video1", ("a dog",)),
    ]
    assert got[0].path.as_posix() == "videos/video3.mp4"


def test_msr_vtt_tests_on_the_sentences_of_the_split(msr_vtt_files):
    got = msr_vtt(msr_vtt_files / "test.csv", "videos", suffix=".webm")
    assert [sample.captions for sample in got] == [("a man, who runs",), ("a woman",)]
    assert got[1].path.name == "video8.webm"


def test_broken_annotations_of_msr_vtt_are_named(msr_vtt_files):
    with pytest.raises(ValueError, match=r"video9 of .*test\.csv has no caption in .*data\.json"):
        msr_vtt(msr_vtt_files / "test.csv", "videos", msr_vtt_files / "data.json")
    with pytest.raises(ValueError, match=r"train\.csv has no column sentence: give annotations"):
        msr_vtt(msr_vtt_files / "train.csv", "videos")
    with pytest.raises(ValueError, match=r"data\.json has no column video_id"):
        msr_vtt(msr_vtt_files / "data.json", "videos")
    with pytest.raises(ValueError, match=r"train\.csv is not json"):
        msr_vtt(msr_vtt_files / "train.csv", "videos", msr_vtt_files / "train.csv")
    (msr_vtt_files / "data.json").write_text('{"sentences": [{"video_id": "video3"}]}')
    with pytest.raises(ValueError, match=r"data\.json: expected an entry with caption, got \{'video_id': 'video3'\}"):
        msr_vtt(msr_vtt_files / "train.csv", "videos", msr_vtt_files / "data.json")


def test_descriptions_of_didemo_become_paragraphs(didemo_files):
    got = didemo(didemo_files / "test_data.json", didemo_files / "videos")
    assert [(sample.name, sample.captions) for sample in got] == [
        ("b_2.avi", ("the cat jumps it sits",)),
        ("a_1.mov", ("a dog",)),
    ]
    # found by its stem, whatever the ending; the other is not there
    assert [sample.path.name for sample in got] == ["b_2.mp4", "a_1.mov"]


def test_didemo_takes_the_listed_videos(didemo_files):
    arguments = didemo_files / "test_data.json", didemo_files / "videos"
    (didemo_files / "list.txt").write_text("a_1.mov\n\n")
    listed = didemo(*arguments, names=didemo_files / "list.txt")
    assert [sample.name for sample in listed] == ["a_1.mov"] and listed == didemo(*arguments, names=["a_1.mov"])
    with pytest.raises(ValueError, match=r"c_3\.avi has no description in .*test_data\.json"):
        didemo(*arguments, names=["c_3.avi"])


@pytest.fixture
def dataset(tmp_path):
    pytest.importorskip("av")
    samples = []
    for number, captions in enumerate([("one", "two"), ("three",)]):
        path = tmp_path / f"video{number}.mp4"
        write_video(path, 10 + 10 * number)
        samples.append(VideoCaptions(f"video{number}", path, captions))
    return RetrievalDataset(samples, frames=2, size=16)


def test_one_item_per_caption(dataset):
    assert len(dataset) == 3 and dataset.captions == ["one", "two", "three"]
    assert dataset.text_video.tolist() == [0, 0, 1]
    assert [(pair.caption, pair.video) for pair in dataset] == [("one", 0), ("two", 0), ("three", 1)]
    assert brightness(dataset[1].clip) == [2, 7] and brightness(dataset.clip(1)) == [5, 15]


def test_items_make_batches(dataset):
    (batch,) = DataLoader(dataset, batch_size=3)
    assert batch.clip.shape == (3, 3, 2, 16, 16)
    positive = batch.video[:, None] == batch.video[None]
    assert positive.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_missing_videos_are_named_before_training(dataset):
    samples = dataset.samples + [VideoCaptions("video7", dataset.samples[0].path.with_name("c.mp4"), ("four",))]
    with pytest.raises(FileNotFoundError, match=r"video7: there is no file .*c\.mp4; 1 of 3 videos are missing"):
        RetrievalDataset(samples)


def test_a_broken_video_is_named_when_it_is_read(dataset):
    dataset.samples[1].path.write_text("no video")
    with pytest.raises(ValueError, match="video1: cannot read"):
        dataset[2]


def test_samples_of_one_seed_are_the_same(dataset):
    assert all(torch.equal(a.clip, b.clip) for a, b in zip(dataset, dataset, strict=True))
