"""The effect of each part of a transfer on accuracy: rows x shares of the data x budgets x seeds, small students.

    python -m tests.benchmarks.bench_distill_accuracy rows --out runs.jsonl [--task glyphs] [--seeds 5] [--steps 240]
    python -m tests.benchmarks.bench_distill_accuracy near --rows "task alone" "pad right" --out near.jsonl
    python -m tests.benchmarks.bench_distill_accuracy rows --out runs.jsonl --report   # prints, runs nothing
    python -m tests.benchmarks.bench_distill_accuracy rows --time                      # processor time of a step

Teacher: ViT, 4 blocks of width 48. Student: VisionMamba, 4 blocks of width 32, two directions. Each run is appended to
--out and not repeated if it is there; the teacher is kept beside it. Prints test accuracy in per cent at every sixth of
a run, mean ± standard deviation (n - 1) over seeds; all have the same teacher. Needs scikit-learn, matplotlib, pillow.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import transmamba as tm
from tests.benchmarks.accuracy_tasks import TASKS, Split
from tests.benchmarks.recipes import TABLES, Recipe, weights_at

DEPTH, WIDTH, TEACHER_WIDTH, BATCH, CHECKPOINTS = 4, 32, 48, 32, 6


@dataclass
class Setting:
    """A trained teacher, its logits for every training image, and the scores of its neurons."""

    size: dict[str, int]
    train: Split
    test: Split
    teacher: nn.Module
    logits: Tensor
    layers: tuple[Tensor, ...]
    centred: tuple[Tensor, ...]
    importance: Any
    accuracy: float


@torch.no_grad()
def accuracy(model: nn.Module, test: Split) -> float:
    """Measure the accuracy on the test images, in per cent."""
    return 100 * (model(test.images).argmax(-1) == test.labels).float().mean().item()


def fit(
    groups: list[dict[str, Any]], steps: int, batches: Iterator[Tensor], loss: Callable[[Tensor, float], Tensor]
) -> Iterator[int]:
    """Train by AdamW with a warm-up and a cosine; yield after each step."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, fused=True)
    cosine = [min(1, (i + 1) / 20) * (1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps + 1)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine.__getitem__)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(next(batches), (step - 1) / steps).backward()
        optimizer.step()
        schedule.step()
        yield step


def draw(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Draw random batches of indices."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(count, (size,), generator=generator)


def fit_task(model: nn.Module, data: Split, steps: int, rate: float, size: int) -> None:
    """Train on labels alone."""
    batches = draw(len(data.labels), size, 0)

    def loss(pick: Tensor, _: float) -> Tensor:
        return F.cross_entropy(model(data.images[pick]), data.labels[pick])

    for _ in fit([{"params": list(model.parameters()), "lr": rate}], steps, batches, loss):
        pass


def prepare(task: str, cache: Path) -> Setting:
    """Train the teacher, or read it from `cache`; then run it once over the student's data."""
    make, steps = TASKS[task]
    size, teacher_data, train, test = make()
    torch.manual_seed(0)
    teacher = tm.models.ViT(**size, dim=TEACHER_WIDTH, depth=4, heads=4)
    tuned = copy.deepcopy(teacher)
    if cache.exists():
        for model, state in zip((teacher, tuned), torch.load(cache), strict=True):
            model.load_state_dict(state)
    else:
        fit_task(teacher, teacher_data, steps, 2e-3, 64)
        tuned.load_state_dict(teacher.state_dict())
        fit_task(tuned, train, 20, 3e-4, BATCH)
        torch.save([teacher.state_dict(), tuned.state_dict()], cache)
    teacher.eval().requires_grad_(False)
    pieces = [teacher.forward_features(piece) for piece in train.images.split(256)]
    last = torch.cat([piece.last for piece in pieces])
    patches = [torch.cat(layer)[:, 1:] for layer in zip(*(piece.layers for piece in pieces), strict=True)]
    layers = (*patches[:-1], last[:, 1:])  # the final norm belongs to the last layer
    centred = tuple((layer - layer.mean((0, 1))) / layer.std((0, 1)) for layer in layers)
    importance, logits = tm.transfer.stability_importance(teacher, tuned), teacher.forward_head(last)
    return Setting(size, train, test, teacher, logits, layers, centred, importance, accuracy(teacher, test))


class Distiller(nn.Module):
    """Calibrators and loss as a recipe wants them."""

    def __init__(self, recipe: Recipe, kept: tuple[int, ...] | None) -> None:
        super().__init__()
        self.recipe = recipe
        self.chosen = [DEPTH - 1] if recipe.last else list(range(recipe.stride - 1, DEPTH, recipe.stride))
        meets = {"last": [-1] * len(self.chosen), "before last": [-2] * len(self.chosen), "matched": self.chosen}
        options = {"weighting": recipe.weighting, "tau": recipe.tau, "teacher_layers": meets[recipe.teacher_layers]}
        inner = tm.AdaptiveLayerDistill(**options)
        self.distill = tm.distill.MultiDirectionalDistill(inner, order="raster")
        pad = kept if recipe.pad == "kept" and kept is not None else "right"
        options = {"mode": recipe.mode, "hidden_dim": recipe.hidden, "pad": pad, "residual": recipe.skip}
        directions = 2 if recipe.feature.endswith("directions") else 1
        self.calibrators = nn.ModuleList(
            tm.distill.LayerCalibrators([WIDTH] * len(self.chosen), TEACHER_WIDTH, **options) for _ in range(directions)
        )

    def forward(self, model: nn.Module, x: Tensor, features: Any, teacher: list[Tensor]) -> Tensor:
        if self.recipe.feature == "stream":
            sides = [features.layers if not self.recipe.last else (*features.layers[:-1], features.last)]
        else:
            shares = [
                [layer.index_select(1, order.inverse) for layer in layers]
                for layers, order in zip(features.directions, features.orders, strict=True)
            ]
            sides = [[sum(pair) for pair in zip(*shares, strict=True)]] if self.recipe.feature == "mixer" else shares
        if self.recipe.feature == "stream_directions":
            inputs = [model.patch_embed(x) + model.pos_embed, *features.layers[:-1]]
            sides = [[a + b for a, b in zip(inputs, side, strict=True)] for side in sides]
        if self.recipe.tokens is not None:
            sample = tm.distill.sample_tokens(teacher[0].shape[1], self.recipe.tokens)
            sides = [[sample.take(layer) for layer in side] for side in sides]
            teacher = [sample.take(layer) for layer in teacher]
        calibrated = {
            name: calibrate([side[layer] for layer in self.chosen])
            for name, calibrate, side in zip(("forward", "backward"), self.calibrators, sides, strict=False)
        }
        return self.distill(calibrated, teacher)


def solve(setting: Setting, student: nn.Module, kept: tuple[int, ...], count: int) -> None:
    """Let the student's stream follow the kept channels of the teacher's on the first images."""
    batches, projection = setting.train.images[:count].split(256), torch.eye(TEACHER_WIDTH)[list(kept)]
    options: dict[str, Any] = {"projection": projection, "tokens": lambda x: x[:, 1:], "progress": False}
    tm.transfer.fit_layers(setting.teacher, student, batches, **options)


def learner(
    recipe: Recipe, setting: Setting, seed: int, share: float = 1.0
) -> tuple[nn.Module, list[dict[str, Any]], Callable]:
    """Build a student, its groups of parameters, and its loss of (indices, progress)."""
    torch.manual_seed(seed)
    student = tm.models.VisionMamba(**setting.size, dim=WIDTH, depth=DEPTH, d_state=4)
    report = tm.subclone(setting.teacher, student, setting.importance) if recipe.inherit else None
    if report is not None and recipe.solved:
        solve(setting, student, report.kept["residual"], int(len(setting.train.labels) * share))
    distiller = None if not recipe.features else Distiller(recipe, report and report.kept["residual"])
    kd = tm.distill.LogitsDistill(temperature=recipe.temperature)
    targets = setting.centred if recipe.centred else setting.layers
    groups = [{"params": list(student.parameters()), "lr": recipe.rate}]
    if distiller is not None and len(list(distiller.parameters())):
        groups.append({"params": list(distiller.parameters()), "lr": recipe.rate * recipe.calibrator_rate})

    def loss(pick: Tensor, progress: float) -> Tensor:
        x, y = setting.train.images[pick], setting.train.labels[pick]
        task_weight, distill_weight = weights_at(recipe.schedule, progress)
        if distiller is None or not distill_weight:
            logits, total = student(x), 0.0
        else:
            features = student.forward_features(x, directions=recipe.feature != "stream")
            logits = student.forward_head(features)
            total = recipe.features * distiller(student, x, features, [layer[pick] for layer in targets])
        if recipe.logits and distill_weight:
            total = total + recipe.logits * kd(logits, setting.logits[pick])
        return task_weight * F.cross_entropy(logits, y) + distill_weight * total

    return student, groups, loss


def run(recipe: Recipe, setting: Setting, share: float, steps: int, seed: int) -> tuple[list[tuple[int, float]], float]:
    """Measure the learning curve, and the processor time of the training alone, without the teacher's forward."""
    student, groups, loss = learner(recipe, setting, seed, share)
    batches = draw(int(len(setting.train.labels) * share), BATCH, seed)
    marks = {round(steps * (i + 1) / CHECKPOINTS) for i in range(CHECKPOINTS)}
    curve, evaluating, start = [], 0.0, time.process_time()
    for step in fit(groups, steps, batches, loss):
        if step in marks:
            before = time.process_time()
            curve.append((step, accuracy(student, setting.test)))
            evaluating += time.process_time() - before
    return curve, time.process_time() - start - evaluating


def step_times(rows: dict[str, Recipe], setting: Setting, repeat: int = 25) -> None:
    """Print the median processor time of a step of each row, the teacher's forward included where it is needed."""

    def prepared(recipe: Recipe) -> Callable[[], object]:
        student, groups, loss = learner(recipe, setting, 0)
        steps = fit(groups, repeat + 2, draw(len(setting.train.labels), BATCH, 0), lambda pick, _: loss(pick, 0.0))
        return lambda: next(steps)

    calls: dict[str, Callable[[], object]] = {name: prepared(recipe) for name, recipe in rows.items()}
    calls["teacher forward"] = lambda: setting.teacher(setting.train.images[:BATCH])
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    medians = {name: 1e3 * statistics.median(values[1:]) for name, values in times.items()}
    for name, value in medians.items():
        recipe = rows.get(name)
        taught = recipe is not None and bool(recipe.features or recipe.logits)
        total = value + medians["teacher forward"] * taught
        print(f"{name:46s} {total:6.1f} ms a step  {total / medians[next(iter(rows))]:5.2f}")


def report(path: Path, rows: dict[str, Recipe]) -> None:
    """Print mean ± standard deviation at every checkpoint."""
    found: dict[tuple, dict[int, list]] = {}
    for line in path.read_text().splitlines():
        one = json.loads(line)
        if one["row"] in rows:
            found.setdefault((one["task"], one["steps"], one["share"], one["row"]), {})[one["seed"]] = one["curve"]
    for key, curves in sorted(found.items(), key=lambda item: (*item[0][:3], list(rows).index(item[0][3]))):
        cells = []
        for points in zip(*curves.values(), strict=True):
            values = [value for _, value in points]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            cells.append(f"{points[0][0]:5d}: {statistics.mean(values):5.1f} ± {spread:3.1f}")
        print(f"{key[0]} {key[1]:5d} steps, {key[2]:4.0%}, n={len(curves)}  {key[3]:46s}" + " ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--task", default="glyphs", choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[240])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0])
    parser.add_argument("--out", type=Path, default=Path("runs.jsonl"))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = TABLES[arguments.table]
    rows = {name: table[name] for name in arguments.rows or table}
    if arguments.report:
        report(arguments.out, rows)
        return
    setting = prepare(arguments.task, arguments.out.with_name(f"teacher_{arguments.task}.pt"))
    print(f"teacher {setting.accuracy:.1f} %, {len(setting.train.labels)} training images", flush=True)
    if arguments.time:
        step_times(rows, setting)
        return
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    names = ("task", "row", "share", "steps", "seed")
    done = {tuple(json.loads(line)[name] for name in names) for line in lines}
    for seed in range(arguments.seeds):
        for key in ((arguments.task, r, s, n, seed) for n in arguments.steps for s in arguments.shares for r in rows):
            if key not in done:
                curve, seconds = run(rows[key[1]], setting, key[2], key[3], seed)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(dict(zip(names, key, strict=True)) | {"curve": curve, "s": seconds}) + "\n")
    report(arguments.out, rows)


if __name__ == "__main__":
    main()
