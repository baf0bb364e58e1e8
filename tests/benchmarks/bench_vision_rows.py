"""The paper's claims on photographs: DINOv2-S to a VisionMamba 96 x 6, by start, losses, labels and steps.

    python -m tests.benchmarks.bench_vision_rows cache FOLDER
    python -m tests.benchmarks.bench_vision_rows run FOLDER --seeds 3 --steps 60 240 --shares 1 0.5 [--rows NAME ...]
    python -m tests.benchmarks.bench_vision_rows tables FOLDER      # mean ± standard deviation
    python -m tests.benchmarks.bench_vision_rows claims FOLDER      # differences at equal seeds, 95 % t-intervals

Photographs of 56 x 56 pixels, 16 patches; 1,500 with labels to train on, 1,124 to test. The teacher's
features of the four mirror images are computed once. A run that has its line already is skipped.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import transmamba as tm
from tests.benchmarks import vision_data
from tests.benchmarks.vision_data import PATCH, normalised
from transmamba import distill, transfer

SIDE, DIM, DEPTH, BATCH, TRAIN, RATE = 56, 96, 6, 32, 1500, 1e-3
SLOWER = {"slow": 1e-1, "gentle": 1e-2}  # factors of the learning rate
MIRRORS = ((), (-1,), (-2,), (-1, -2))
# start, and losses beside that of the labels; "head": solved as well
ROWS = {
    "scratch": ("scratch",),
    "scratch, last feature": ("scratch", "last"),
    "scratch, adaptive": ("scratch", "adaptive"),
    "scratch, bidirectional": ("scratch", "bidirectional"),
    "scratch, logits": ("scratch", "logits"),
    "subclone": ("subclone",),
    "subclone, last feature": ("subclone", "last"),
    "subclone, adaptive": ("subclone", "adaptive"),
    "subclone, bidirectional": ("subclone", "bidirectional"),
    "subclone, logits": ("subclone", "logits"),
    "subclone, bidirectional, logits": ("subclone", "bidirectional", "logits"),
    "subclone, head solved": ("subclone", "head"),
    "subclone, head solved, slow": ("subclone", "head", "slow"),
    "subclone, head solved, gentle": ("subclone", "head", "gentle"),
    "closed form": ("closed", "head"),
    "closed form, slow": ("closed", "head", "slow"),
    "closed form, slow, logits": ("closed", "head", "slow", "logits"),
    "closed form, gentle": ("closed", "head", "gentle"),
    "closed form, gentle, last feature": ("closed", "head", "gentle", "last"),
    "closed form, gentle, adaptive": ("closed", "head", "gentle", "adaptive"),
    "closed form, gentle, bidirectional": ("closed", "head", "gentle", "bidirectional"),
    "closed form, gentle, logits": ("closed", "head", "gentle", "logits"),
}
STARTS = ("scratch", "subclone", "closed form, gentle")
# which is above which: among the losses, and after any start
ORDER = [("bidirectional", "logits"), ("logits", "last feature"), ("bidirectional", "last feature"),
         ("last feature", None), ("adaptive", None), ("bidirectional", None), ("logits", None)]  # fmt: skip
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # quantile 0.975 by number of seeds


def solved_head(features, labels, classes=4):
    """Return weight and bias of a logistic regression, for the features as they are."""
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    probe = torch.nn.Linear(features.shape[1], classes)
    torch.nn.init.zeros_(probe.weight)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=80, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(probe((features - mean) / deviation), labels) + 3e-3 * probe.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    weight = probe.weight.detach() / deviation
    return weight, probe.bias.detach() - weight @ mean


@torch.no_grad()
def cache(folder):
    """Write the small photographs and the teacher's outputs for them."""
    teacher = vision_data.teacher(SIDE)
    images, labels = vision_data.photographs()
    images = F.avg_pool2d(images[:, None].float(), 112 // SIDE)[:, 0].round().byte()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))
    images, labels = images[order], labels[order]
    parts = [[teacher.forward_features(normalised(x.flip(axes) if axes else x)).last for x in images.split(128)]
             for axes in MIRRORS]  # fmt: skip
    tokens = torch.stack([torch.cat(part) for part in parts])
    pooled = torch.cat([tokens[:, :, 0], tokens[:, :, 1:].mean(2)], -1)
    weight, bias = solved_head(pooled[:, :TRAIN].flatten(0, 1), labels[:TRAIN].repeat(len(MIRRORS)))
    logits = pooled @ weight.T + bias
    hit = (logits[0, TRAIN:].argmax(-1) == labels[TRAIN:]).float().mean().item()
    teacher.save_pretrained(folder / "teacher56")
    data = {"images": images, "labels": labels, "tokens": tokens[:, :TRAIN, 1:].half(), "logits": logits[:, :TRAIN]}
    torch.save({**data, "accuracy": 100 * hit}, folder / "small.pt")
    print("teacher", 100 * hit, "majority", 100 * (labels[TRAIN:] == 0).float().mean().item())


class Setting:
    """Photographs, the teacher, and its outputs."""

    def __init__(self, folder):
        self.data = torch.load(folder / "small.pt")
        self.teacher = tm.models.ViT.from_pretrained(folder / "teacher56")
        self.images, self.labels = normalised(self.data["images"]), self.data["labels"]
        self.batches = list(self.images[:1000].split(BATCH))
        self.made = {}
        self.axes = transfer.principal_axes(self.teacher, self.batches, DIM)

    def student(self, start, seed):
        """Return a student and where its channels were in the teacher; each is made once."""
        if (start, seed) not in self.made:
            self.made[start, seed] = *self.new(start, seed), torch.get_rng_state()
        student, pad, state = self.made[start, seed]
        torch.set_rng_state(state)
        return copy.deepcopy(student), pad

    def new(self, start, seed):
        """Make a student."""
        torch.manual_seed(seed)
        student = tm.models.VisionMamba(SIDE, PATCH, dim=DIM, depth=DEPTH, num_classes=4)
        if start == "scratch":
            return student, "right"
        exclude = [*transfer.SSM_PARAMETERS, "head.*"]
        options = {"layer_map": "uniform", "exclude": exclude}
        kept = tm.subclone(self.teacher, student, transfer.magnitude_importance, **options).kept["residual"]
        if start == "subclone":
            return student, kept
        transfer.project_start(self.teacher, student, self.axes)
        options = {"projection": self.axes, "tokens": lambda x: x[:, 1:], "mlp": True, "progress": False}
        transfer.fit_layers(self.teacher, student.eval(), self.batches, **options)
        return student, "right"

    @torch.no_grad()
    def features(self, student, part):
        """Return the head's input."""
        return torch.cat([student.forward_features(x).last.mean(1) for x in self.images[part].split(128)])

    def accuracy(self, student):
        """Return per cent of the test photographs."""
        logits = student.head(self.features(student.eval(), slice(TRAIN, None)))
        return 100 * (logits.argmax(-1) == self.labels[TRAIN:]).float().mean().item()


class Learner(torch.nn.Module):
    """A student with the calibrators and losses of a row."""

    def __init__(self, setting, parts, seed, own):
        super().__init__()
        self.model, pad = setting.student(parts[0], seed)
        self.parts, self.setting = parts, setting
        if "head" in parts:
            with torch.no_grad():
                found = solved_head(setting.features(self.model.eval(), own), setting.labels[own])
                self.model.head.weight.copy_(found[0])
                self.model.head.bias.copy_(found[1])
        count = {"last": 1, "adaptive": DEPTH, "bidirectional": DEPTH}
        names = [name for name in parts if name in count for _ in range(1 + (name == "bidirectional"))]
        self.bridges = torch.nn.ModuleList(
            distill.LayerCalibrators([DIM] * count[name], 384, pad=pad) for name in names
        )
        self.adaptive, self.both = tm.AdaptiveLayerDistill(), tm.BidirectionalDistill()
        self.last, self.soft = distill.LastFeatureDistill(), distill.LogitsDistill(temperature=4.0)

    def forward(self, pick, mirror):
        """Return labels and distillation, each of weight 1."""
        images, labels = self.setting.images, self.setting.labels
        x = images[pick].flip(MIRRORS[mirror]) if mirror else images[pick]
        features = self.model.forward_features(x, directions="bidirectional" in self.parts)
        logits, target = self.model.head(features.last.mean(1)), self.setting.data["tokens"][mirror, pick].float()
        loss = F.cross_entropy(logits, labels[pick])
        if "last" in self.parts:
            loss = loss + self.last(self.bridges[0]([features.last])[0], target)
        if "adaptive" in self.parts:
            loss = loss + self.adaptive(self.bridges[0](features.layers), target)
        if "bidirectional" in self.parts:
            sides = [bridge(side) for bridge, side in zip(self.bridges, features.directions, strict=True)]
            loss = loss + self.both(*sides, target)
        if "logits" in self.parts:
            loss = loss + self.soft(logits, self.setting.data["logits"][mirror, pick])
        return loss


def train(setting, row, seed, steps, share):
    """Return the accuracy after the steps, and before them."""
    own = torch.arange(int(TRAIN * share))
    learner = Learner(setting, ROWS[row], seed, own)
    before = setting.accuracy(learner.model)
    generator, parameters = torch.Generator().manual_seed(seed + 100), list(learner.parameters())
    slower = math.prod(SLOWER.get(part, 1) for part in ROWS[row])
    groups = [{"params": list(part.parameters()), "lr": RATE * factor}  # calibrators are new in every row
              for part, factor in ((learner.model, slower), (learner.bridges, 1))]  # fmt: skip
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    begin = time.process_time()
    for _ in range(steps):
        pick = own[torch.randint(len(own), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        learner.train()(pick, int(torch.randint(len(MIRRORS), (), generator=generator))).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return {"before": before, "after": setting.accuracy(learner.model), "seconds": time.process_time() - begin}


def lines(folder):
    """Return the results so far by their keys."""
    path = folder / "rows.jsonl"
    found = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {(line["row"], line["seed"], line["steps"], line["share"]): line for line in found}


def run(folder, args):
    """Run the rows that have no result yet."""
    setting = Setting(folder)
    wanted = [(row, seed, steps, share) for seed in range(args.seeds) for share in args.shares for steps in args.steps
              for row in args.rows or ROWS]  # fmt: skip
    for key in wanted:
        if key not in lines(folder):
            line = dict(zip(("row", "seed", "steps", "share"), key, strict=True)) | train(setting, *key)
            print(line, flush=True)
            with (folder / "rows.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def tables(folder, args):
    """Print mean and standard deviation over the seeds."""
    done = lines(folder)
    cells = sorted({(steps, share) for _, _, steps, share in done})
    print("| | " + " | ".join(f"{steps} steps, {share:.0%}" for steps, share in cells) + " |")
    print("| --- |" + " --: |" * len(cells))
    for row in ROWS:
        texts = []
        for cell in cells:
            x = torch.tensor([line["after"] for key, line in done.items() if (key[0], *key[2:]) == (row, *cell)])
            texts.append(f"{x.mean():.1f} ± {x.std():.1f}" if len(x) > 1 else "")
        print(f"| {row} | {' | '.join(texts)} |")


def difference(done, first, second):
    """Return the mean difference of two cells (row, steps, share) at equal seeds, its 95 % half-width and the seeds."""
    x, y = ({key[1]: line["after"] for key, line in done.items() if (key[0], *key[2:]) == cell}
            for cell in (first, second))  # fmt: skip
    both = torch.tensor([x[seed] - y[seed] for seed in x.keys() & y.keys()])
    n = len(both)
    return (both.mean().item(), T[n] * both.std().item() / math.sqrt(n), n) if n > 1 else None


def claims(folder, args):
    """Print the paper's claims as differences: the order of the losses, fewer labels, fewer steps."""
    done = lines(folder)
    cells = sorted({(steps, share) for _, _, steps, share in done})
    pairs = [((row(start, more), *cell), (row(start, less), *cell))
             for cell in cells for start in STARTS for more, less in ORDER]  # fmt: skip
    pairs += [((name, *cell), ("scratch", *cell)) for cell in cells for name in STARTS[1:]]
    whole = [(steps, 1.0) for steps in sorted({steps for steps, _ in cells})]
    pairs += [((name, steps, share), ("scratch", steps, 1.0)) for steps, share in cells if share < 1 for name in ROWS]
    pairs += [((name, *few), ("scratch", *many)) for few in whole for many in whole if few < many for name in ROWS]
    print("| | less | difference | seeds |\n| --- | --- | --: | --: |")
    for first, second in pairs:
        if found := difference(done, first, second):
            mean, half, n = found
            texts = (f"{name}, {steps} steps, {share:.0%}" for name, steps, share in (first, second))
            print(f"| {' | '.join(texts)} | {mean:+.1f} ± {half:.1f} | {n} |")


def row(start, loss):
    """Return the name of a row."""
    return f"{start}, {loss}" if loss else start


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("cache", "run", "tables", "claims"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 240])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0])
    parser.add_argument("--rows", nargs="+")
    given = parser.parse_args()
    commands = {"cache": lambda folder, _: cache(folder), "run": run, "tables": tables, "claims": claims}
    commands[given.command](given.folder, given)
