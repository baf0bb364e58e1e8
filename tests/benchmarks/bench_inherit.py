"""The worth of inheritance on glyphs: importance scores, layer maps, rescaling and the attention start.

    python -m tests.benchmarks.bench_inherit run RECORDS.jsonl [--teachers 2] [--seeds 5] [--ways WAY ...]
    python -m tests.benchmarks.bench_inherit show RECORDS.jsonl [--ways WAY ...] [--figure CURVES.svg]

A ViT (6 blocks, width 96) learns 62 glyphs; a `VisionMamba` (3 blocks, width 48, two directions) inherits from it and
trains on the same fonts. A way is `scratch` or `option=value,...`, the differences from the default. Every run adds a
line to RECORDS and is skipped if it is there; the teachers stay beside the file. Needs matplotlib and tqdm.
"""

import argparse
import copy
import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import transmamba as tm
from tests.benchmarks.glyphs import CLASSES, TEST_FONTS, TRAIN_FONTS, distort, draw
from transmamba.transfer import AttentionInit

SIZE = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 62}
TEACHER_STEPS, TUNING_STEPS, STEPS, BATCH = 1200, 20, 130, 64
MEASURED = (0, 13, 26, 52, 78, 104, 130)
DEFAULT = {"importance": "stability", "layer_map": "early", "rescale": "none", "start": "random", "learn": "labels"}
SCORES = ("relative", "magnitude", "activation", "taylor", "wanda", "random", "first")
WAYS = (
    "",
    "scratch",
    *(f"importance={name}" for name in SCORES),
    "layer_map=uniform",
    "layer_map=drop_middle",
    "rescale=sqrt",
    "start=attention",
    # "layers": labels and the teacher's layers of the same relative depth; "teacher": those layers and its logits
    *(
        f"{change}learn={lesson}"
        for lesson in ("layers", "teacher")
        for change in ("", "layer_map=uniform,", "layer_map=drop_middle,", "rescale=sqrt,", "start=attention,")
    ),
)
Data = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def images(fonts: tuple[str, ...], copies: int, seed: int) -> Data:
    """Draw the letters of `glyphs` with a third of its noise: in so few steps nothing is learnt from noisier ones."""
    clean, classes = torch.cat([draw(font) for font in fonts]), torch.arange(len(CLASSES)).repeat(len(fonts) * copies)
    return distort(clean.repeat(copies, 1, 1), 16, torch.Generator().manual_seed(seed), noise=0.1), classes


def train(model: nn.Module, data: Data, steps: int, rate: float, seed: int, loss: Loss | None = None) -> Iterator[int]:
    """Train by AdamW with a tenth of warm-up and a cosine to zero; yield the number of steps taken, from 0 on."""
    loss = loss or (lambda pixels, classes: F.cross_entropy(model(pixels), classes))
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05, fused=True)
    chance = torch.Generator().manual_seed(seed)
    for step in range(steps):
        yield step
        optimizer.param_groups[0]["lr"] = (
            rate * min(1, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2
        )
        pick = torch.randint(len(data[1]), (BATCH,), generator=chance)
        optimizer.zero_grad()
        loss(data[0][pick], data[1][pick]).backward()
        optimizer.step()
    yield steps


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    return 100 * (model(data[0]).argmax(1) == data[1]).float().mean().item()


@torch.no_grad()
def pooled(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the mean over the patch tokens after the final norm."""
    features = torch.cat([model.forward_features(part).last for part in pixels.split(512)])  # type: ignore[operator]
    return features[:, 1 if isinstance(model, tm.models.ViT) else 0 :].mean(1)


def fit(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Solve a ridge regression in closed form."""
    mean, centre = x.mean(0), y.mean(0)
    gram = (x - mean).T @ (x - mean)
    weight = torch.linalg.solve(
        gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram)), (x - mean).T @ (y - centre)
    )
    return lambda z: (z - mean) @ weight + centre


class Teacher:
    """A trained ViT, its scores, and its features of the probe's images."""

    def __init__(self, seed: int, train_data: Data, test_data: Data, path: Path) -> None:
        torch.manual_seed(seed)
        self.model, self.number = tm.models.ViT(dim=96, depth=6, heads=4, **SIZE), seed
        self.data, self.test = train_data, test_data
        if path.exists():
            self.model.load_state_dict(torch.load(path))
        else:
            for _ in tqdm(train(self.model, train_data, TEACHER_STEPS, 2e-3, seed), f"teacher {seed}", mininterval=9):
                pass
            torch.save(self.model.state_dict(), path)
        self.model.eval()
        tuned = copy.deepcopy(self.model)
        part = train_data[0][::4], train_data[1][::4]
        for _ in train(tuned, part, TUNING_STEPS, 3e-4, seed):
            pass
        self.scores = self.score(tuned, part)
        self.model.requires_grad_(False)
        self.probe = torch.randperm(len(train_data[1]), generator=torch.Generator().manual_seed(0))[:2000]
        self.features = [pooled(self.model, pixels) for pixels in (train_data[0][self.probe], test_data[0])]
        self.accuracy = accuracy(self.model, test_data)

    def score(self, tuned: nn.Module, part: Data) -> dict[str, object]:
        t = tm.transfer
        chosen = torch.randperm(len(part[1]), generator=torch.Generator().manual_seed(self.number))[:512]
        batches, classes = part[0][chosen].split(64), part[1][chosen].split(64)
        pairs = list(zip(batches, classes, strict=True))
        return {
            "stability": t.stability_importance(self.model, tuned),
            "relative": t.stability_importance(self.model, tuned, change="relative"),
            "magnitude": t.magnitude_importance,
            "activation": t.activation_importance(self.model, batches, progress=False),
            "taylor": t.taylor_importance(
                self.model, pairs, lambda model, pair: F.cross_entropy(model(pair[0]), pair[1]), progress=False
            ),
            "wanda": t.wanda_importance(self.model, batches, progress=False),
            "first": t.first_importance,
        }

    def student(self, way: str, seed: int) -> tuple[nn.Module, nn.Module, Loss | None]:
        """Build a student, the modules to train (student and calibrators), and the loss if it is not that of labels."""
        torch.manual_seed(100 * self.number + seed)
        student = tm.models.VisionMamba(dim=48, depth=3, **SIZE)
        if way == "scratch":
            return student, student, None
        options = DEFAULT | dict(pair.split("=") for pair in way.split(",") if pair)
        chosen = options["importance"]
        report = tm.subclone(
            self.model,
            student,
            tm.transfer.random_importance(100 * self.number + seed) if chosen == "random" else self.scores[chosen],  # type: ignore[arg-type]
            layer_map=options["layer_map"],  # type: ignore[arg-type]
            rescale="sqrt" if options["rescale"] == "sqrt" else None,
            ssm_from=AttentionInit(heads=4, length=16) if options["start"] == "attention" else None,
        )
        if options["learn"] == "labels":
            return student, student, None
        bridge = tm.distill.LayerCalibrators([48] * 3, 96, pad=report.kept["residual"])
        return student, nn.ModuleList((student, bridge)), self.lesson(student, bridge, options["learn"] == "layers")

    def lesson(self, student: tm.models.VisionMamba, bridge: nn.Module, labels: bool) -> Loss:
        """Return a loss on layers of the same relative depth, and on the labels or the teacher's logits."""
        distill, logits = tm.AdaptiveLayerDistill(teacher_layers="proportional"), tm.distill.LogitsDistill(2.0)

        def loss(pixels: Tensor, classes: Tensor) -> Tensor:
            mine, theirs = student.forward_features(pixels), self.model.forward_features(pixels)
            answer = student.forward_head(mine)
            task = F.cross_entropy(answer, classes) if labels else logits(answer, self.model.forward_head(theirs))
            return task + distill(bridge(mine.layers), [layer[:, 1:] for layer in theirs.layers])

        return loss

    def worth(self, student: nn.Module) -> dict[str, float]:
        """Measure the worth of the student's features, through maps fitted on training images."""
        known, new = pooled(student, self.data[0][self.probe]), pooled(student, self.test[0])
        classes = fit(known, F.one_hot(self.data[1][self.probe], 62).float())(new).argmax(1)
        centre = self.features[0].mean(0)
        guess = fit(known, self.features[0])(new)
        cosine = F.cosine_similarity(guess - centre, self.features[1] - centre).mean().item()
        return {"probe": 100 * (classes == self.test[1]).float().mean().item(), "cosine": cosine}


def run(path: Path, teachers: int, seeds: int, ways: list[str]) -> None:
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(record["way"], record["teacher"], record["seed"]) for record in map(json.loads, lines)}
    runs = [(way, number, seed) for seed in range(seeds) for number in range(teachers) for way in ways]
    train_data, test_data = images(TRAIN_FONTS, 12, 0), images(TEST_FONTS, 2, 1)
    trained = [Teacher(n, train_data, test_data, path.with_suffix(f".teacher{n}.pt")) for n in range(teachers)]
    for way, number, seed in tqdm([key for key in runs if key not in done], "students", mininterval=9):
        teacher = trained[number]
        student, learner, loss = teacher.student(way, seed)
        record = {"way": way, "teacher": number, "seed": seed, "reference": teacher.accuracy, **teacher.worth(student)}
        steps = train(learner, train_data, STEPS, 4e-3, 100 * number + seed, loss)
        record["curve"] = {step: accuracy(student, test_data) for step in steps if step in MEASURED}
        record["cosine at the end"] = teacher.worth(student)["cosine"]
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def show(path: Path, ways: list[str], figure: Path | None) -> None:
    """Print mean and deviation by way, and the paired difference to the default with its error; draw `ways`.

    A way with another lesson is compared with a default that has the same lesson.
    """
    records = [json.loads(line) for line in path.read_text().splitlines()]
    rows = {(r["way"], r["teacher"], r["seed"]): r for r in records}
    columns = {
        "probe at 0": lambda r: r["probe"],
        "cosine at 0": lambda r: 100 * r["cosine"],
        f"step {MEASURED[2]}": lambda r: r["curve"][str(MEASURED[2])],
        f"step {MEASURED[4]}": lambda r: r["curve"][str(MEASURED[4])],
        "final": lambda r: r["curve"][str(STEPS)],
        "cosine at the end": lambda r: 100 * r["cosine at the end"],
    }
    print(f"teachers: {sorted({(r['teacher'], round(r['reference'], 1)) for r in records})}")
    print("| way | runs | " + " | ".join(f"{name} | to default" for name in columns) + " |")
    for way in dict.fromkeys(r["way"] for r in records):
        mine, base = [key for key in rows if key[0] == way], way[way.index("learn=") :] if "learn=" in way else ""
        cells = []
        for value in columns.values():
            values = [value(rows[key]) for key in mine]
            pairs = [value(rows[key]) - value(rows[base, *key[1:]]) for key in mine if (base, *key[1:]) in rows]
            error = statistics.stdev(pairs) / len(pairs) ** 0.5
            cells += [
                f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}",
                f"{statistics.mean(pairs):+.1f} ({error:.1f})" if way != base else "",
            ]
        print(f"| {way or 'default'} | {len(mine)} | " + " | ".join(cells) + " |")
    if figure is not None:
        drawn = [record for record in records if record["way"] in ways]
        plot(drawn, figure, "test accuracy, per cent", "62 glyphs, unseen fonts")


def plot(records: list[dict], figure: Path, value: str, title: str) -> None:
    """Draw the records' curves against steps, the mean and the range over all runs of a way."""
    import matplotlib.pyplot as plt

    # the same file from the same records, and a small one
    plt.rcParams.update({"svg.hashsalt": "transmamba", "svg.fonttype": "none"})
    canvas, axis = plt.subplots(figsize=(7, 4))
    for way in dict.fromkeys(r["way"] for r in records):
        mine = [r["curve"] for r in records if r["way"] == way]
        steps, curves = list(map(int, mine[0])), torch.tensor([list(curve.values()) for curve in mine])
        axis.plot(steps, curves.mean(0), marker="o", markersize=3, label=way or "default")
        axis.fill_between(steps, curves.amin(0), curves.amax(0), alpha=0.15)
    axis.set(xlabel="step", ylabel=value, title=title)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    canvas.savefig(figure, metadata={"Date": None}, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("records", type=Path)
    parser.add_argument("--teachers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.action == "run":
        run(arguments.records, arguments.teachers, arguments.seeds, arguments.ways)
    else:
        show(arguments.records, arguments.ways, arguments.figure)


if __name__ == "__main__":
    main()
