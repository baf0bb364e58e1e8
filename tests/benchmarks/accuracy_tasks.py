"""The two small tasks of `bench_distill_accuracy`."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tests.benchmarks.glyphs import CLASSES, TEST_FONTS, TRAIN_FONTS, glyphs


class Split(NamedTuple):
    """Images and their classes."""

    images: Tensor
    labels: Tensor


def digits() -> tuple[dict[str, int], Split, Split, Split]:
    """Return model sizes, data of the teacher and of the student, and test data: 8 x 8 digits."""
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(raw.images, dtype=torch.float32)[order, None] / 8 - 1
    labels = torch.tensor(raw.target)[order]
    train, test = Split(images[:1200], labels[:1200]), Split(images[1200:], labels[1200:])
    return {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}, train, train, test


def letters() -> tuple[dict[str, int], Split, Split, Split]:
    """Return the same for 62 classes of glyphs; the teacher has ten times as many distortions as the student."""
    size = {"img_size": 12, "patch_size": 4, "in_chans": 1, "num_classes": len(CLASSES)}
    train = Split(*glyphs(TRAIN_FONTS, 4, size=12, seed=0))
    return size, Split(*glyphs(TRAIN_FONTS, 40, size=12, seed=1)), train, Split(*glyphs(TEST_FONTS, 2, size=12, seed=2))


TASKS = {"digits": (digits, 600), "glyphs": (letters, 1500)}  # and the teacher's steps
