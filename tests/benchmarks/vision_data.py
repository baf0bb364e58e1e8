"""Photographs and other pictures for `bench_vision`, and DINOv2 as their teacher; all of it out of packages.

* photographs: 2,624 solar cells under electroluminescence, four degrees of defects (elpv-dataset, CC BY-NC-SA 4.0).
* varied: crops of wallpapers with cut-out things of all kinds pasted in, and noise of many spectra, strongly augmented
  (Debian: mate-backgrounds, plasma-workspace-wallpapers, tuxpaint-stamps-default, under the folder PICTURES).
* other: crops of pictures that scikit-image and scikit-learn ship; nothing is fitted on them.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from tests import real
from transmamba.models import from_transformer

SIDE, PATCH = 112, 14
MEAN, DEVIATION = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
PICTURES = Path(os.environ.get("PICTURES", "/usr/share"))


def teacher(side=SIDE):
    """Build DINOv2 ViT-S/14 for images of a size."""
    return from_transformer(real.dinov2_state(real.dinov2_graph()), config=real.DINOV2, img_size=side)


def normalised(images):
    """Normalise bytes, grey or of three channels, as the teacher reads them."""
    images = images if images.dim() == 4 else images[:, None].expand(-1, 3, -1, -1)
    return (images.float() / 255 - MEAN) / DEVIATION


def photographs():
    """Return all photographs of the package, grey, and their degree of defect."""
    folder = Path(importlib.util.find_spec("elpv_dataset").submodule_search_locations[0]) / "data"
    images, labels = [], []
    for line in (folder / "labels.csv").read_text().splitlines():
        name, probability, _ = line.split()
        image = Image.open(folder / name).convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(image)))
        labels.append(round(3 * float(probability)))
    return torch.stack(images), torch.tensor(labels)


def opened(paths, mode, side=1000):
    """Open pictures, none larger than needed."""
    found = []
    for path in paths:
        image = Image.open(path).convert(mode)
        image.thumbnail((side, side))
        if min(image.size) >= 48:
            found.append(image)
    return found


class Varied:
    """Draw pictures of as many kinds as the sources allow."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        walls = sorted((PICTURES / "backgrounds").rglob("*.jpg")) + sorted((PICTURES / "backgrounds").rglob("*.png"))
        walls += sorted((PICTURES / "wallpapers").rglob("screenshot.*"))
        self.walls = opened(walls, "RGB")
        self.things = opened(sorted((PICTURES / "tuxpaint/stamps").rglob("*.png")), "RGBA", 300)

    def draw(self):
        """Draw one picture, bytes of three channels."""
        r = self.random
        image = self.noise() if r.random() < 0.15 else self.crop(self.walls[r.integers(len(self.walls))])
        for _ in range(r.choice([0, 1, 2], p=[0.25, 0.5, 0.25])):
            thing = self.things[r.integers(len(self.things))].rotate(r.normal(0, 15), expand=True)
            size = int(r.integers(30, 120))
            thing = thing.resize((size, max(1, size * thing.height // thing.width)))
            image.paste(thing, tuple(int(v) for v in r.integers(-20, 90, 2)), thing)
        return torch.from_numpy(np.array(self.augmented(image))).permute(2, 0, 1)

    def crop(self, image, smallest=0.1):
        """Crop a random part."""
        side = int(min(image.size) * self.random.uniform(smallest, 1))
        left, top = (int(self.random.integers(n - side + 1)) for n in image.size)
        box = (left, top, left + side, top + side)
        return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)

    def noise(self):
        """Draw noise whose power falls with frequency, from white to cloudy, more in one direction than the other."""
        r = self.random
        y, x = (np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
        power = (x**2 * r.uniform(0.2, 5) + y**2 + 1e-5) ** (-r.uniform(0, 1.5) / 2)
        waves = np.fft.ifft2(np.fft.fft2(r.normal(size=(3, SIDE, SIDE))) * power).real
        waves = (waves - waves.mean((1, 2), keepdims=True)) / waves.std((1, 2), keepdims=True)
        mixed = np.tensordot(np.eye(3) + r.normal(0, 0.7, (3, 3)), waves, 1)
        return Image.fromarray((128 + 40 * mixed).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))

    def augmented(self, image):
        """Apply mirroring, grey, inversion, blur, other contrast and colour at random."""
        r = self.random
        image = ImageOps.mirror(image) if r.random() < 0.5 else image
        if r.random() < 0.35:
            image = image.convert("L").convert("RGB")
        if r.random() < 0.1:
            image = ImageOps.invert(image)
        if r.random() < 0.2:
            image = image.filter(ImageFilter.GaussianBlur(r.uniform(0.5, 2.5)))
        gain, shift = r.uniform(0.4, 1.4), r.uniform(-40, 40)
        return image.point(lambda v: min(255, max(0, (v - 128) * gain + 128 + shift)))


def varied(count, seed=0):
    """Draw as many pictures to fit on."""
    source = Varied(seed)
    return torch.stack([source.draw() for _ in range(count)])


def other(count, seed=1):
    """Cut crops of pictures of other sources, not augmented."""
    folders = (("sklearn", "datasets/images"), ("skimage", "data"))
    specs = [(importlib.util.find_spec(package), sub) for package, sub in folders]
    paths = [
        path
        for spec, sub in specs
        for path in sorted((Path(spec.submodule_search_locations[0]) / sub).iterdir())
        if path.suffix in (".png", ".jpg")
    ]
    source, images = Varied(seed), opened(paths, "RGB")
    crops = [np.array(source.crop(images[i % len(images)], 0.4)) for i in range(count)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def cache(folder, *, many=6000):
    """Write teacher and pictures into a folder, once."""
    for side in (SIDE, SIDE // 2):
        teacher(side).save_pretrained(folder / f"teacher{side}")
    images, labels = photographs()
    torch.save(
        {"images": images, "labels": labels, "varied": varied(many), "other": other(200)}, folder / "pictures.pt"
    )
