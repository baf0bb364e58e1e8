"""What the cheap forms of the distillation loss cost in accuracy: digits, a small student, equal steps.

    python tests/benchmarks/bench_distill_accuracy.py [--seeds 5] [--steps 240] [--share 0.25] [--task-weight 0.7]

Prints test accuracy (mean and standard deviation over seeds) for each form of the calibrators. Needs scikit-learn.
"""

import argparse
import statistics

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from transmamba.distill import BidirectionalDistill, LayerCalibrators, TransMambaLoss, sample_tokens
from transmamba.models.vision_mamba import VisionMamba
from transmamba.models.vit import ViT

DEPTH, WIDTH, TEACHER_WIDTH, TOKENS = 6, 32, 64, 16
SIZE = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}
FORMS = {
    "from scratch": None,
    "default": {},
    "bottleneck": {"hidden_dim": WIDTH},
    "default, every 3rd layer": {"stride": 3},
    "bottleneck, every 3rd layer": {"hidden_dim": WIDTH, "stride": 3},
    "bottleneck, 1/4 of tokens": {"hidden_dim": WIDTH, "tokens": TOKENS // 4},
    "bottleneck, every 2nd layer, 1/4 of tokens": {"hidden_dim": WIDTH, "stride": 2, "tokens": TOKENS // 4},
}


def data(share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels (a share of 1200), test images and labels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[: int(1200 * share)], order[1200:]
    return images[train], labels[train], images[test], labels[test]


def train_teacher(images: Tensor, labels: Tensor, steps: int) -> ViT:
    teacher = ViT(dim=TEACHER_WIDTH, depth=4, heads=4, **SIZE)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-3)
    for _ in range(steps):
        pick = torch.randint(len(labels), (64,))
        loss = F.cross_entropy(teacher(images[pick]), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher.eval().requires_grad_(False)


class Distiller(nn.Module):
    """Calibrators and loss on every `stride`-th layer and `tokens` of the tokens."""

    def __init__(self, stride: int = 1, tokens: int = TOKENS, **options: object) -> None:
        super().__init__()
        self.chosen = slice(stride - 1, None, stride)
        self.tokens = tokens
        self.calibrators = LayerCalibrators([WIDTH] * (DEPTH // stride), TEACHER_WIDTH, **options)
        self.distill = BidirectionalDistill(order="raster")

    def forward(self, directions: tuple[tuple[Tensor, ...], ...], teacher: Tensor) -> Tensor:
        sample = sample_tokens(TOKENS, self.tokens)
        forward, backward = (
            self.calibrators([sample.take(layer, order) for layer in layers[self.chosen]])
            for layers, order in zip(directions, ("forward", "backward"), strict=True)
        )
        return self.distill(forward, backward, sample.take(teacher))


def accuracy(form: str, teacher: ViT, split: tuple[Tensor, ...], arguments: argparse.Namespace, seed: int) -> float:
    torch.manual_seed(seed)
    images, labels, test_images, test_labels = split
    student = VisionMamba(dim=WIDTH, depth=DEPTH, mlp=False, d_state=8, **SIZE)
    distiller = None if FORMS[form] is None else Distiller(**FORMS[form])
    total = TransMambaLoss.v1(arguments.task_weight)
    extra = [] if distiller is None else list(distiller.parameters())
    optimizer = torch.optim.AdamW([*student.parameters(), *extra], lr=1e-3)
    for _ in range(arguments.steps):
        pick = torch.randint(len(labels), (64,))
        features = student.forward_features(images[pick], directions=distiller is not None)
        loss = F.cross_entropy(student.head(features.last.mean(1)), labels[pick])
        if distiller is not None:
            loss = total(loss, distiller(features.directions, teacher.forward_features(images[pick]).last[:, 1:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return (student(test_images).argmax(1) == test_labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--task-weight", type=float, default=0.7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels, test_images, test_labels = data(1.0)
    teacher = train_teacher(images, labels, 400)
    print(f"teacher {(teacher(test_images).argmax(1) == test_labels).float().mean():.1%}", flush=True)
    for form in FORMS:
        scores = [accuracy(form, teacher, data(arguments.share), arguments, seed) for seed in range(arguments.seeds)]
        print(f"{form:45s} {statistics.mean(scores):.1%} ± {statistics.stdev(scores):.1%}", flush=True)


if __name__ == "__main__":
    main()
