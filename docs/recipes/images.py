"""Class folders of images: `folder/train/<class>/*.png` and `folder/val/<class>/*.png` (.jpg, .jpeg as well)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENDINGS = {".png", ".jpg", ".jpeg", ".JPEG"}


class ClassFolders(Dataset):
    """Images and the numbers of their classes, in alphabetical order."""

    def __init__(self, root: Path, transform: Callable[[Image.Image], Tensor]) -> None:
        self.classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        files = ((file, number) for number, name in enumerate(self.classes) for file in sorted((root / name).iterdir()))
        self.items = [(file, number) for file, number in files if file.suffix in ENDINGS]
        self.transform = transform
        if not self.items:
            raise ValueError(f"{root} holds no image: expected {root}/<class>/*.png or .jpg")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, number = self.items[index]
        with Image.open(file) as image:
            return self.transform(image.convert("RGB")), number


def to_tensor(image: Image.Image) -> Tensor:
    """Channels first, mean and deviation of ImageNet taken out."""
    x = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def plain_train(size: int) -> Callable[[Image.Image], Tensor]:
    """A random part of the image, and by chance its mirror image: what is left of DeiT's without timm."""

    def transform(image: Image.Image) -> Tensor:
        share = float(torch.empty(()).uniform_(0.25, 1)) ** 0.5
        width, height = (max(1, round(side * share)) for side in image.size)
        left, top = (int(torch.randint(n + 1, ())) for n in (image.width - width, image.height - height))
        cut = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        return to_tensor(cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < 0.5 else cut)

    return transform


def plain_val(size: int) -> Callable[[Image.Image], Tensor]:
    """The middle 0.875 of the shorter side."""

    def transform(image: Image.Image) -> Tensor:
        side = 0.875 * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return to_tensor(image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))

    return transform


def make_transform(size: int, train: bool) -> Callable[[Image.Image], Tensor]:
    """DeiT's augmentation by timm where it is installed."""
    try:
        from timm.data import create_transform
    except (ImportError, RuntimeError):  # timm imports torchvision, which fails in several ways
        if not train:
            return plain_val(size)
        print("timm cannot be imported: images are cut and mirrored at random, and not augmented further")
        return plain_train(size)
    augment: dict[str, Any] = {"color_jitter": 0.3, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25}
    return create_transform(
        size, is_training=train, interpolation="bicubic", crop_pct=0.875, **(augment if train else {})
    )


def make_loader(root: Path, size: int, batch: int, *, train: bool, rank: int, world: int, workers: int) -> DataLoader:
    """This process's share of the images; call `loader.sampler.set_epoch` before each epoch."""
    data = ClassFolders(root / ("train" if train else "val"), make_transform(size, train))
    sampler = DistributedSampler(data, world, rank, shuffle=train, drop_last=train)
    return DataLoader(
        data, batch, sampler=sampler, num_workers=workers, pin_memory=torch.cuda.is_available(), drop_last=train
    )


def mix(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Half of the batches mixed up (0.8), half cut (1.0), labels smoothed by 0.1; as DeiT's, a batch at a time."""
    hard = F.one_hot(labels, classes).float()
    soft = hard * 0.9 + 0.1 / classes
    alpha = 0.8 if torch.rand(()) < 0.5 else 1.0
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    if alpha == 0.8:
        return share * images + (1 - share) * images.flip(0), share * soft + (1 - share) * soft.flip(0)
    height, width = images.shape[-2:]
    tall, wide = (round(side * (1 - share) ** 0.5) for side in (height, width))
    top, left = int(torch.randint(height - tall + 1, ())), int(torch.randint(width - wide + 1, ()))
    cut = images.clone()
    cut[..., top : top + tall, left : left + wide] = images.flip(0)[..., top : top + tall, left : left + wide]
    kept = 1 - tall * wide / (height * width)
    return cut, kept * soft + (1 - kept) * soft.flip(0)
