"""The cost of a stored teacher in a training step: DINOv2-S features read from disk, against a step without a teacher.

    python -m tests.benchmarks.bench_store FOLDER [--size 112] [--batch 16] [--samples 64] [--rounds 5] [--threads 1]

A student of width 384 and 12 blocks of two-direction mixers takes a step (forward, backward, AdamW) on a random
projection of its tokens as task; with the teacher, the cosine of its last tokens is added, from a teacher that runs or
from a `FeatureStore` in float16, with the checksum of the pixels. The forms take turns; medians and ranges of the ratio
to the step without teacher, in processor time and in wall-clock time. The weights are random, which changes no cost.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from transmamba import models
from transmamba.distill import FeatureStore, LastFeatureDistill


def main() -> None:
    """Read the arguments, write the store if need be, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, value in {"size": 112, "batch": 16, "samples": 64, "rounds": 5, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes = {"img_size": args.size, "patch_size": 14, "num_classes": 4, "dim": 384, "depth": 12}
    teacher = models.ViT(**sizes, heads=6).eval().requires_grad_(False)
    student = models.VisionMamba(**sizes)
    images = torch.randn(args.samples, 3, args.size, args.size)
    keys = [(i, 0) for i in range(args.samples)]

    def compute(keys):
        x = images[[sample for sample, _ in keys]]
        return x, {"tokens": teacher.forward_features(x).last[:, 1:]}

    store_options = {"teacher": teacher, "augmentation": "none"}
    FeatureStore.write(args.folder, keys, compute, **store_options)
    store = FeatureStore(args.folder, **store_options)
    forms = {
        "no teacher": lambda keys, x: None,
        "stored": lambda keys, x: store.get(keys, x)["tokens"],
        "running": lambda keys, x: compute(keys)[1]["tokens"],
    }
    optimizer, distill = torch.optim.AdamW(student.parameters(), lr=1e-4), LastFeatureDistill("cosine")
    seconds = {name: [] for name in forms}
    for turn in range(args.rounds + 1):
        for name, target in forms.items():
            chosen = torch.randint(args.samples, (args.batch,)).tolist()
            start = time.process_time(), time.perf_counter()
            x = images[chosen]
            last = student.forward_features(x).last
            loss, wanted = student.forward_head(last).square().mean(), target([keys[i] for i in chosen], x)
            loss = loss if wanted is None else loss + distill(last, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if turn:  # the first round warms up
                seconds[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    print("| teacher | CPU s per step | ratio, CPU | range | ratio, wall |\n|---|--:|--:|--:|--:|")
    for name, times in seconds.items():
        ratios = [[a[i] / b[i] for a, b in zip(times, seconds["no teacher"], strict=True)] for i in (0, 1)]
        cpu, wall = (statistics.median(part) for part in ratios)
        print(
            f"| {name} | {statistics.median(t[0] for t in times):.2f} | {cpu:.3f} | "
            f"{min(ratios[0]):.3f}-{max(ratios[0]):.3f} | {wall:.3f} |"
        )


if __name__ == "__main__":
    main()
