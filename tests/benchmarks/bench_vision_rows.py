"""The paper's claims on photographs: DINOv2-S to a VisionMamba 96 x 6, by start, losses, labels and steps.

    python -m tests.benchmarks.bench_vision_rows cache FOLDER
    python -m tests.benchmarks.bench_vision_rows run FOLDER --seeds 3 --steps 60 240 --shares 1 0.5 [--rows NAME ...]
    python -m tests.benchmarks.bench_vision_rows tables FOLDER      # mean ± standard deviation
    python -m tests.benchmarks.bench_vision_rows claims FOLDER      # differences at equal seeds, 95 % t-intervals

Photographs of 56 x 56 pixels, 16 patches; 1,500 with labels to train on, 1,124 to test. The teacher's
features of the four mirror images are computed once. A run that has its line already is skipped.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch

from tests.benchmarks.vision_learner import BATCH, MIRRORS, TRAIN, Learner, Setting, cache

RATE = 1e-3
SLOWER = {"slow": 1e-1, "gentle": 1e-2}  # factors of the learning rate
# "head": solved as well
STARTS = {"scratch": ("scratch",), "subclone": ("subclone",), "closed form, gentle": ("closed", "head", "gentle")}
LOSSES = {
    "": (),
    "last feature": ("last",),
    "adaptive": ("adaptive",),
    "bidirectional": ("bidirectional",),
    "tuned": ("tuned",),
    "relations": ("relations",),
    "relations by direction": ("directed",),
    "logits": ("logits",),
    "bidirectional, logits": ("bidirectional", "logits"),
    "tuned, logits": ("tuned", "logits"),
    "relations, logits": ("relations", "logits"),
    "four directions": ("four",),
    "multi-directional": ("four", "multi"),
}


def row(start, loss):
    """Return the name of a row."""
    return f"{start}, {loss}" if loss else start


ROWS = {row(start, loss): (*STARTS[start], *LOSSES[loss]) for start in STARTS for loss in LOSSES} | {
    "subclone, head solved": ("subclone", "head"),
    "subclone, head solved, slow": ("subclone", "head", "slow"),
    "subclone, head solved, gentle": ("subclone", "head", "gentle"),
    "closed form": ("closed", "head"),
    "closed form, slow": ("closed", "head", "slow"),
    "closed form, slow, logits": ("closed", "head", "slow", "logits"),
}
# which is above which
ORDER = (
    ("bidirectional", "logits"),
    ("logits", "last feature"),
    ("bidirectional", "last feature"),
    *((loss, "") for loss in LOSSES if loss not in ("", "multi-directional")),
    ("multi-directional", "four directions"),
    ("relations", "logits"),
    ("relations by direction", "relations"),
    *((f"{loss}, logits", "logits") for loss in ("bidirectional", "tuned", "relations")),
)
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # quantile 0.975 by number of seeds


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
    """Print mean and standard deviation over the seeds, before the first step and after the last."""
    done = lines(folder)
    cells = sorted({(steps, share) for _, _, steps, share in done})
    print(
        "| | before | " + " | ".join(f"{steps} steps, {share:.0%}" for steps, share in cells) + " | CPU s, 60 steps |"
    )
    print("| --- | --: |" + " --: |" * (len(cells) + 1))
    for name in ROWS:
        first = {seed: line["before"] for (row, seed, _, share), line in done.items() if (row, share) == (name, 1.0)}
        after = [[line["after"] for key, line in done.items() if (key[0], *key[2:]) == (name, *cell)] for cell in cells]
        times = [line["seconds"] for key, line in done.items() if (key[0], key[2]) == (name, 60)]
        texts = [spread(values) for values in (list(first.values()), *after)]
        if first:
            cost = f"{torch.tensor(times).mean():.1f}" if times else ""
            print(f"| {name} | {' | '.join(texts)} | {cost} |")


def spread(values):
    """Return mean and standard deviation, with their number where it is not five."""
    x, count = torch.tensor(values), len(values)
    text = f"{x.mean():.1f} ± {x.std():.1f}" if count > 1 else f"{x.mean():.1f}" if count else ""
    return f"{text} ({count})" if count not in (0, 5) else text


def difference(done, first, second):
    """Return the mean difference of two cells (row, steps, share) at equal seeds, its 95 % half-width and the seeds."""
    x, y = ({key[1]: line["after"] for key, line in done.items() if (key[0], *key[2:]) == cell}
            for cell in (first, second))  # fmt: skip
    both = torch.tensor([x[seed] - y[seed] for seed in x.keys() & y.keys()])
    n = len(both)
    return (both.mean().item(), T[n] * both.std().item() / math.sqrt(n), n) if n > 1 else None


def claims(folder, args):
    """Print the paper's claims as differences: the order of the losses, then fewer labels and fewer steps."""
    done = lines(folder)
    cells = sorted({(steps, share) for _, _, steps, share in done})
    heads = [(start, *cell) for cell in cells for start in STARTS]
    found = {(pair, head): difference(done, *((row(head[0], loss), *head[1:]) for loss in pair))
             for pair in ORDER for head in heads}  # fmt: skip
    heads = [head for head in heads if any(found[pair, head] for pair in ORDER)]
    print(
        "| difference | " + " | ".join(f"{start}, {steps} steps, {share:.0%}" for start, steps, share in heads) + " |"
    )
    print("| --- |" + " --: |" * len(heads))
    for pair in (pair for pair in ORDER if any(found[pair, head] for head in heads)):
        texts = " | ".join(interval(found[pair, head]) for head in heads)
        print(f"| {' − '.join(loss or 'labels alone' for loss in pair)} | {texts} |")
    many = [("scratch", steps, 1.0) for steps in sorted({steps for steps, _ in cells})]
    pairs = [((name, *cell), (name, cell[0], 1.0)) for cell in cells if cell[1] < 1 for name in ROWS]
    pairs += [((name, *cell), base) for cell in cells for base in many if cell[0] <= base[1] for name in ROWS
              if (name, *cell) != base]  # fmt: skip
    print("\n| | less | difference |\n| --- | --- | --: |")
    for first, second in dict.fromkeys(pairs):
        if text := interval(difference(done, first, second)):
            names = (f"{name}, {steps} steps, {share:.0%}" for name, steps, share in (first, second))
            print(f"| {' | '.join(names)} | {text} |")


def interval(found):
    """Return a difference with its 95 % interval, and the number of seeds where it is not five."""
    if not found:
        return ""
    mean, half, count = found
    return f"{mean:+.1f} ± {half:.1f}" + (f" ({count})" if count != 5 else "")


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
