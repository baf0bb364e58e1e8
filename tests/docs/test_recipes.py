"""The recipes train on class folders of tiny images, and go on exactly where they stopped."""

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
CLASSES = ("apple", "bread", "cloud")


@pytest.fixture
def recipes(monkeypatch):
    """Import the scripts; a module whose plain name they take (tests/transfer) gets it back afterwards."""
    monkeypatch.syspath_prepend(str(RECIPES))
    names = ("images", "loop", "transfer", "finetune")
    taken = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield {name: __import__(name) for name in names}
    for name in names:
        del sys.modules[name]
    sys.modules.update(taken)


@pytest.fixture
def folder(tmp_path):
    """Write eight training and four other images of each of three classes, 20 x 24 pixels."""
    drawn = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(CLASSES):
            place = tmp_path / "data" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = drawn.integers(0, 150, (20, 24, 3), dtype=np.uint8)
                pixels[..., number] += 100
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def small(recipes, monkeypatch):
    """Register models of toy size under the names of the recipes."""
    from transmamba import models

    size = {"dim": 12, "depth": 2}
    monkeypatch.setattr(models, "vit_small", lambda **options: models.ViT(**options, dim=16, depth=2, heads=2))
    monkeypatch.setattr(models, "plain_mamba_tiny", lambda **options: models.PlainMamba(**options, **size))
    monkeypatch.setattr(models, "vim_tiny", lambda **options: models.Vim(**options, **size))
    monkeypatch.setattr(models, "vmamba_v0_tiny", lambda **options: models.vmamba_v0((8, 16), (1, 1), **options))
    monkeypatch.setitem(recipes["transfer"].WIDTHS, "tiny", 12)
    return recipes


def command(folder, out, *more):
    sizes = ("--epochs", "2", "--batch", "8", "--size", "16", "--patch", "4", "--workers", "0")
    return [str(folder), str(out), *sizes, *map(str, more)]


@pytest.fixture
def teacher(small, tmp_path):
    """Save a teacher, and the same teacher before its fine-tuning, with a head of other classes."""
    vit = small["transfer"].models.vit_small
    torch.save(vit(img_size=16, patch_size=4, num_classes=7).state_dict(), tmp_path / "before.pt")
    torch.save(vit(img_size=16, patch_size=4, num_classes=3).state_dict(), tmp_path / "after.pt")
    return tmp_path / "after.pt", tmp_path / "before.pt"


def tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [x for value in values for x in tensors(value)]


def load(out):
    return torch.load(out / "last.pt", weights_only=True)


@pytest.mark.parametrize("student", ["vision_tiny", "plain_mamba_tiny", "vim_tiny", "vmamba_v0_tiny"])
def test_every_student_trains(small, folder, teacher, tmp_path, student):
    after, before = teacher
    out = tmp_path / student
    scores = small["transfer"].main(command(folder, out, "--weights", after, "--before", before, "--student", student))
    assert math.isfinite(scores["loss"]) and 0 <= scores["accuracy"] <= 1
    assert load(out)["epochs"] == 2


@pytest.mark.parametrize(
    ("width", "student"), [(16, "vision_tiny"), (12, "vision_tiny"), (16, "vim_tiny"), (24, "vmamba_v0_tiny")]
)
def test_any_image_transformer_teaches_and_the_readouts_are_solved(small, folder, tmp_path, capsys, width, student):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=12, num_attention_heads=2, image_size=24, patch_size=4
    )
    torch.manual_seed(0)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    ours = ("--weights", tmp_path / "dino", "--student", student)
    out = tmp_path / "out"
    closed = () if student == "vim_tiny" else ("--closed-form", 16)
    scores = small["transfer"].main(command(folder, out, *ours, *closed))
    assert math.isfinite(scores["loss"]) and load(out)["epochs"] == 2
    printed = capsys.readouterr().out
    assert ("stream error" in printed) == bool(closed)


def test_a_language_model_is_refused(small, folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=11, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="img_size= is for image models, this teacher reads text"):
        small["transfer"].main(command(folder, tmp_path / "out", "--weights", tmp_path / "text"))


def test_what_was_fine_tuned_can_teach(small, folder, teacher, tmp_path):
    out = tmp_path / "teacher"
    small["finetune"].main(command(folder, out, "--weights", teacher[1]))
    vit = small["transfer"].build("vit_small", 3, argparse.Namespace(size=16, patch=4))
    vit.load_state_dict(small["transfer"].read(out / "last.pt"))


def test_a_teacher_of_another_size_is_refused(small, folder, teacher, tmp_path):
    with pytest.raises(ValueError, match="does not fit vit_small: pos_embed"):
        small["finetune"].main(command(folder, tmp_path / "out", "--weights", teacher[1], "--patch", 8))


def test_a_resumed_run_is_a_straight_one_bit_for_bit(small, folder, teacher, tmp_path, monkeypatch):
    ours = ("--weights", teacher[0], "--student", "vision_tiny")
    straight = small["transfer"].main(command(folder, tmp_path / "straight", *ours))

    train = small["loop"].Run.train

    def interrupted(run, loader, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return train(run, loader, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(small["loop"].Run, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small["transfer"].main(command(folder, tmp_path / "resumed", *ours))
    assert load(tmp_path / "resumed")["epochs"] == 1
    torch.rand(7)  # the state of the generators at the start does not matter
    resumed = small["transfer"].main(command(folder, tmp_path / "resumed", *ours))
    assert resumed == straight
    pairs = list(zip(tensors(load(tmp_path / "straight")), tensors(load(tmp_path / "resumed")), strict=True))
    assert len(pairs) > 100
    assert all(torch.equal(one, other) for one, other in pairs)


def test_mixing_keeps_the_labels_a_distribution(recipes):
    for seed in range(6):
        torch.manual_seed(seed)
        x, soft = recipes["images"].mix(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1]), 3)
        assert x.shape == (4, 3, 8, 8)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        assert bool((soft > 0).all())


def test_schedule_of_the_paper(recipes):
    rates = [recipes["loop"].learning_rate(step, 10, 300, 5e-4) for step in range(3000)]
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == rates[50] == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(1e-5, rel=1e-2)
    assert all(a > b for a, b in zip(rates[50:], rates[51:], strict=False))


def test_a_folder_without_images_is_refused(recipes, tmp_path):
    (tmp_path / "apple").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        recipes["images"].ClassFolders(tmp_path, recipes["images"].to_tensor)


@pytest.mark.slow
def test_runs_on_two_processes(folder, tmp_path):
    from transmamba import models

    torch.save(models.vit_tiny(img_size=16, patch_size=4, num_classes=3).state_dict(), tmp_path / "teacher.pt")
    ours = ("--teacher", "vit_tiny", "--weights", tmp_path / "teacher.pt", "--student", "vision_tiny")
    path = os.pathsep.join([str(RECIPES.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    script = [str(RECIPES / "transfer.py"), *command(folder, tmp_path / "out", *ours)]
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("epoch") == 2
