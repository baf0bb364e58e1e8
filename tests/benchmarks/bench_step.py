"""A distillation step of notebook 02's size, with and without its teacher: time and peak memory.

    python -m tests.benchmarks.bench_step [--device cuda] [--batch 32] [--dim 32] [--repeat 20]

The student reads images, its layers are compared with the teacher's in both directions, and the optimiser steps. "No
teacher" leaves out the teacher's forward and the comparison. Median of the rounds; on a GPU the device is waited for.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

import transmamba as tm

SIZE = {"img_size": 12, "patch_size": 4, "in_chans": 1, "num_classes": 62}
DEPTH = 4


def make_step(arguments: argparse.Namespace, *, taught: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    device, dim = arguments.device, arguments.dim
    student = tm.models.VisionMamba(**SIZE, dim=dim, depth=DEPTH, d_state=4).to(device)
    teacher = tm.models.ViT(**SIZE, dim=dim * 3 // 2, depth=DEPTH, heads=4).to(device).requires_grad_(False)
    calibrators = [tm.distill.LayerCalibrators([dim] * DEPTH, dim * 3 // 2).to(device) for _ in range(2)]
    loss = tm.BidirectionalDistill(tm.AdaptiveLayerDistill(teacher_layers="proportional"), order="raster")
    optimizer = torch.optim.AdamW(torch.nn.ModuleList([student, *calibrators]).parameters())
    images = torch.randn(arguments.batch, 1, 12, 12, device=device)
    labels = torch.randint(62, (arguments.batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        seen = student.forward_features(images, directions=taught)
        total = F.cross_entropy(student.forward_head(seen), labels)
        if taught:
            with torch.no_grad():
                target = [layer[:, 1:] for layer in teacher.forward_features(images).layers]  # without the class token
            sides = (calibrate(layers) for calibrate, layers in zip(calibrators, seen.directions, strict=True))
            total = total + loss(*sides, target)
        total.backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=20)
    arguments = parser.parse_args()
    print("| step | ms | peak MiB |\n|---|--:|--:|")
    for name, taught in (("no teacher", False), ("with teacher", True)):
        step = make_step(arguments, taught=taught)
        for _ in range(min(3, arguments.repeat)):
            step()
        if arguments.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        middle = statistics.median(timed(step, arguments.device) for _ in range(arguments.repeat))
        peak = torch.cuda.max_memory_allocated() / 2**20 if arguments.device != "cpu" else 0
        print(f"| {name} | {middle * 1e3:.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
