"""The teacher's features on disk: the features read are those computed, for these samples and augmentations only."""

import json
import pickle
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from transmamba.distill import FeatureStore, fingerprint

pytest.importorskip("safetensors")

IMAGES = torch.randn(11, 3, 4, 4, generator=torch.Generator().manual_seed(0))
KEYS = [(sample, view) for sample in range(11) for view in range(2)]
FLIP = "flip of view 1"


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.project, self.calls = nn.Linear(4, 5), []

    def compute(self, keys):
        self.calls.append(len(keys))
        x = seen(keys)
        tokens = self.project(x.flatten(1, 2))
        return x, {"tokens": tokens, "logits": tokens.mean(1)}


def seen(keys):
    return torch.stack([IMAGES[sample].flip(-1) if view else IMAGES[sample] for sample, view in keys])


def write(folder, teacher, keys=KEYS, **options):
    options = {"augmentation": FLIP, "batch_size": 3, "shard_size": 8} | options
    FeatureStore.write(folder, keys, teacher.compute, teacher=teacher, **options)


@pytest.fixture
def teacher():
    return Teacher()


def reopen(folder, teacher, augmentation=FLIP):
    return FeatureStore(folder, teacher=teacher, augmentation=augmentation)


def test_what_is_read_is_what_was_computed(tmp_path, teacher):
    write(tmp_path, teacher, dtype="float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"shard_0000{i}.safetensors" for i in range(3)), "store.json",
    ]  # fmt: skip
    assert teacher.calls == [3, 3, 2, 3, 3, 2, 3, 3]  # one pass; the last file and the last batches are smaller
    store = reopen(tmp_path, teacher)
    assert len(store) == 22 and (10, 1) in store and (10, 2) not in store
    keys = [(10, 1), (0, 0), (3, 1), (0, 0)]
    with torch.no_grad():
        expected = teacher.compute(keys)[1]
    got = store.get(keys, seen(keys))
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


@pytest.mark.parametrize(("dtype", "relative", "absolute"), [("float16", 2**-11, 2**-25), ("bfloat16", 2**-8, 2**-134)])
def test_rounding_is_within_its_bound(tmp_path, teacher, dtype, relative, absolute):
    values = torch.randn(4000, dtype=torch.float64) * 10.0 ** torch.randint(-9, 4, (4000,))
    values = values.float()

    def compute(keys):
        return torch.zeros(len(keys), 1), {"x": values.expand(len(keys), -1)}

    FeatureStore.write(tmp_path, [("a", 0)], compute, teacher=teacher, augmentation="", dtype=dtype)
    store = reopen(tmp_path, teacher, "")
    got, exact = store.get([("a", 0)])["x"][0].double(), values.double()
    error = (got - exact).abs()
    assert (error <= relative * exact.abs() + absolute).all()
    assert (error > 0.8 * relative * exact.abs()).any()  # the bound is not a loose one
    assert store.get([("a", 0)], dtype=None)["x"].dtype == getattr(torch, dtype)


@pytest.mark.parametrize("wrong", [1e5, torch.inf, torch.nan])
def test_what_the_format_cannot_hold_is_refused(tmp_path, wrong):
    def compute(keys):
        return torch.zeros(len(keys), 1), {"x": torch.full((len(keys), 2), wrong)}

    with pytest.raises(ValueError, match=r"x has a number that torch.float16 cannot hold .* up to 6.55e\+04; bfloat16"):
        FeatureStore.write(tmp_path, [(0, 0)], compute, teacher="t", augmentation="")


@pytest.mark.parametrize("damage", ["cut", "gone", "none"])
def test_a_store_goes_on_where_it_was_stopped(tmp_path, teacher, damage):
    def stops(keys):
        if len(teacher.calls) == 4:
            raise KeyboardInterrupt
        return teacher.compute(keys)

    options = {"teacher": teacher, "augmentation": FLIP, "batch_size": 3, "shard_size": 8}
    with pytest.raises(KeyboardInterrupt):
        FeatureStore.write(tmp_path, KEYS, stops, **options)
    with pytest.raises(
        ValueError, match=r"shard_00001.* missing or not whole \(2 of 3 files\): call FeatureStore.write"
    ):
        reopen(tmp_path, teacher)
    first = tmp_path / "shard_00000.safetensors"
    if damage == "cut":
        first.write_bytes(first.read_bytes()[:-5])
    elif damage == "gone":
        first.unlink()
    (tmp_path / "shard_00002.safetensors").write_bytes(b"\x08")
    teacher.calls.clear()
    write(tmp_path, teacher)
    assert sum(teacher.calls) == (14 if damage == "none" else 22)
    teacher.calls.clear()
    write(tmp_path, teacher)
    assert teacher.calls == []
    with torch.no_grad():
        expected = teacher.compute(KEYS)[1]["tokens"]
    torch.testing.assert_close(reopen(tmp_path, teacher).get(KEYS)["tokens"], expected, rtol=2**-11, atol=2**-25)


def test_other_augmentations_are_refused(tmp_path, teacher, monkeypatch):
    write(tmp_path, teacher)
    with pytest.raises(
        ValueError, match="is for augmentation 'flip of view 1', now asked for is 'crop': write another"
    ):
        reopen(tmp_path, teacher, "crop")
    store = reopen(tmp_path, teacher)
    keys = [(0, 0), (1, 0)]
    with pytest.raises(ValueError, match="other pixels of sample 1, view 0, than the teacher did: draw the view's"):
        store.get(keys, torch.stack([IMAGES[0], IMAGES[1].flip(-1)]))
    with pytest.raises(ValueError, match="other pixels of sample 0"):
        store.get(keys, seen(keys).roll(1, -1))
    assert store.get(keys, seen(keys) * (1 + 1e-6))
    (dark := tmp_path / "dark").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "IMAGES", IMAGES * 1e-6)
        write(dark, teacher)
    with pytest.raises(ValueError, match="other pixels of sample 0"):
        reopen(dark, teacher).get(keys, seen(keys).roll(1, -1) * 1e-6)
    with pytest.raises(ValueError, match="inputs has 1 rows for 2 keys"):
        store.get(keys, IMAGES[:1])
    with pytest.raises(KeyError, match=r"sample 3 has no view 2 in .*: views \[0, 1\] are stored"):
        store.get([(3, 2)])
    with pytest.raises(KeyError, match="sample 'x' has no view 0 in .*: no view is stored"):
        store.get([("x", 0)])
    with pytest.raises(ValueError, match="keys is empty"):
        store.get([])


def test_another_teacher_or_other_keys_are_refused(tmp_path, teacher):
    write(tmp_path, teacher)
    old = fingerprint(teacher)
    assert reopen(tmp_path, old).keys == reopen(tmp_path, teacher).keys
    with torch.no_grad():
        teacher.project.bias[0] += 1e-6
    assert fingerprint(teacher) != old
    for call in (partial(reopen, tmp_path, teacher), partial(write, tmp_path, teacher)):
        with pytest.raises(ValueError, match=f"is for teacher '{old}', now asked for is"):
            call()
    for options in ({"keys": KEYS[:3]}, {"shard_size": 7}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="is for .*, now asked for is .*: write another store"):
            FeatureStore.write(
                tmp_path, **{"keys": KEYS, "compute": teacher.compute, "teacher": old, "augmentation": FLIP,
                             "shard_size": 8} | options,
            )  # fmt: skip


class Samples(Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return 11

    def __getitem__(self, sample):
        key = (sample, sample % 2)
        return sample, self.store.get([key], seen([key]))["tokens"][0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_read_it(tmp_path, teacher, start):
    write(tmp_path, teacher)
    store = reopen(tmp_path, teacher)
    keys = [(sample, sample % 2) for sample in range(11)]
    expected = store.get(keys)["tokens"]  # files are open before the workers start
    loader = DataLoader(Samples(store), 4, shuffle=True, num_workers=2, multiprocessing_context=start)
    for samples, tokens in loader:  # the last batch is smaller
        assert torch.equal(tokens, expected[samples])


def test_a_copy_opens_its_files_again(tmp_path, teacher):
    write(tmp_path, teacher)
    store = reopen(tmp_path, teacher)
    store.get(KEYS)
    again = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 3000
    assert torch.equal(again.get(KEYS)["logits"], store.get(KEYS)["logits"])


def test_what_is_read_is_a_copy(tmp_path, teacher):
    write(tmp_path, teacher, dtype="float32")
    store = reopen(tmp_path, teacher)
    store.get([(0, 0)])["tokens"].zero_()
    assert store.get([(0, 0)])["tokens"].any()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda n: {}, r"compute gave tensors called \[\]"),
        (lambda n: {"checksum": torch.zeros(n)}, "none called checksum"),
        (lambda n: {"x": torch.zeros(n + 1)}, "compute gave 3 rows of x for 2 keys"),
        (lambda n: {"x": torch.zeros(n, dtype=torch.long)}, "x has dtype torch.int64: expected a floating"),
        (lambda n: {"x": torch.zeros(n, n)}, "one batch has tensors .*, another .*: expected equal names and shapes"),
    ],
)
def test_what_compute_gives_is_checked(tmp_path, tensors, message):
    def compute(keys):
        return torch.zeros(len(keys), 1), tensors(len(keys))

    with pytest.raises(ValueError, match=message):
        FeatureStore.write(tmp_path, KEYS[:3], compute, teacher="t", augmentation="", batch_size=2)


def test_clear_errors(tmp_path, teacher, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"holds no store.json: write the store first"):
        reopen(tmp_path, teacher)
    for keys in ([], [(0, 0), (0, 0)]):
        with pytest.raises(ValueError, match="expected keys, each once, got"):
            write(tmp_path, teacher, keys)
    with pytest.raises(ValueError, match="batch_size and shard_size must be at least 1, got 0 and 8"):
        write(tmp_path, teacher, batch_size=0)
    with pytest.raises(ValueError, match="batch_size and shard_size must be at least 1, got 3 and 0"):
        write(tmp_path, teacher, shard_size=0)
    write(tmp_path / "single", teacher, KEYS[:2], batch_size=1, shard_size=1)
    write(tmp_path, teacher)
    facts = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps(facts | {"version": 9}))
    with pytest.raises(ValueError, match="is for version 9, now asked for is 1"):
        reopen(tmp_path, teacher)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(ValueError, match=r"store.json is damaged .*: delete the folder and write the store again"):
        reopen(tmp_path, teacher)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="a feature store needs safetensors: pip install safetensors"):
        write(tmp_path / "other", teacher)
