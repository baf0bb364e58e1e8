"""Letters and digits drawn from the fonts that matplotlib ships: a small task that is hard enough.

62 classes, 0-9 A-Z a-z, split by font: test letters come from type faces that no training letter was drawn with. Some
pairs (0 and O, 1 and l) differ in nothing but their place in a word, so that even a perfect reader stays below 100 %.

    python tests/benchmarks/glyphs.py    # prints the split and the sizes
"""

import math
import string
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "STIXGeneral",
    "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10", "cmmi10",
)  # fmt: skip
TEST_FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Italic", "STIXGeneralBol", "cmss10", "cmtt10", "cmti10")
LARGE = 48  # pixels at which a letter is drawn before it is moved and shrunk


def draw(font: str) -> Tensor:
    """Draw all classes in one font, white on black, `[class, 48, 48]` between 0 and 1.

    Raises:
        FileNotFoundError: matplotlib does not ship this font.
    """
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    if not path.exists():
        raise FileNotFoundError(f"matplotlib ships no font {font!r}: the names are those of {path.parent}")
    pen = ImageFont.truetype(str(path), 38)
    letters = []
    for letter in CLASSES:
        image = Image.new("L", (LARGE, LARGE))
        ImageDraw.Draw(image).text((LARGE / 2, 0.72 * LARGE), letter, fill=255, font=pen, anchor="ms")
        letters.append(torch.from_numpy(np.array(image)))
    return torch.stack(letters).float() / 255


def distort(images: Tensor, size: int, generator: torch.Generator, noise: float = 0.1) -> Tensor:
    """Turn, shear, scale and shift each image at random, shrink it to `size` pixels and add noise.

    Angles reach 10 degrees, shears 0.1, scales 0.85 to 1.15, shifts 8 % of half the width.

    Args:
        images: `[image, 48, 48]` between 0 and 1.
        size: rows and columns of the result.
        generator: source of all that is random.
        noise: standard deviation of the noise, where ink and paper lie 2 apart.

    Returns:
        `[image, 1, size, size]`, about -1 to 1.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(images)).uniform_(low, high, generator=generator)

    angle, shear, scale = uniform(-1, 1) * math.radians(10), uniform(-0.1, 0.1), uniform(0.85, 1.15)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = (cosine, shear * cosine - sine, uniform(-0.08, 0.08), sine, shear * sine + cosine, uniform(-0.08, 0.08))
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(images), 1, 2 * size, 2 * size], align_corners=False)
    # sampled at twice the resolution and averaged: thin strokes would otherwise fall between the pixels
    small = F.avg_pool2d(F.grid_sample(images[:, None], grid, align_corners=False), 2)
    return small * 2 - 1 + noise * torch.randn(small.shape, generator=generator)


def glyphs(fonts: tuple[str, ...], copies: int, *, size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw `copies` distorted images of every class in every font, in random order, with their classes.

    The first n are a random n of them, so a share of the data is a slice. The same seed gives the same images.

    Args:
        fonts: names such as `TRAIN_FONTS`.
        copies: images per class and font.
        size: rows and columns.
        seed: of distortion, noise and order.

    Returns:
        Images `[image, 1, size, size]` and labels `[image]`.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = torch.cat([draw(font) for font in fonts]).repeat(copies, 1, 1)
    labels = torch.arange(len(CLASSES)).repeat(len(fonts) * copies)
    order = torch.randperm(len(labels), generator=generator)
    return distort(clean, size, generator)[order], labels[order]


if __name__ == "__main__":
    for name, fonts in (("train", TRAIN_FONTS), ("test", TEST_FONTS)):
        print(f"{name}: {len(fonts) * len(CLASSES)} images a copy, from {', '.join(fonts)}")
