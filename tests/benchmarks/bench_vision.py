"""DINOv2-S/14 with Mamba mixers in place of its attention, judged by frozen features on photographs of solar cells.

    python -m tests.benchmarks.bench_vision cache FOLDER            # once: the teacher and the pictures, `vision_data`
    python -m tests.benchmarks.bench_vision run FOLDER [NAME ...]   # the rows of RUNS; each result is a line of a file
    python -m tests.benchmarks.bench_vision tables FOLDER

A run that has its line already is skipped, so that it can be stopped at any time. No label is used but by the probes:
logistic regression on class token and mean patch, 4-fold on the 1,624 photographs that no transfer has used. Times are
CPU seconds of one process with one thread.
"""

import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import avg_pool2d, cosine_similarity, cross_entropy

from tests.benchmarks import vision_data
from tests.benchmarks.records import Records
from tests.benchmarks.vision_data import normalised
from tests.benchmarks.vision_rows import RUNS
from tests.benchmarks.yardsticks import agreement, readable
from transmamba.models import ViT

FIT, BATCH = 1000, 32


class Bench(Records):
    """The teacher, the pictures and the file of results.

    Args:
        folder: made by `cache`.
        side: 112 pixels, or 56, where everything is four times as fast.
    """

    def __init__(self, folder, side=112):
        super().__init__(folder)
        self.teacher = ViT.from_pretrained(folder / f"teacher{side}")
        data = torch.load(folder / "pictures.pt")
        for name in ("images", "varied", "other"):
            data[name] = data[name] if side == 112 else halved(data[name])
        order = torch.randperm(len(data["labels"]), generator=torch.Generator().manual_seed(7))
        self.photographs, self.labels = data["images"][order[:FIT]], data["labels"][order[FIT:]]
        self.judged = data["images"][order[FIT:]]
        self.varied, self.other, self.theirs = data["varied"], data["other"], None

    @property
    def mirrored(self):
        """Return the photographs, and again from left to right."""
        return torch.cat([self.photographs, self.photographs.flip(-1)])

    def batches(self, count, source="photographs"):
        """Return the first pictures of a kind; both kinds interleaved are `mixed`."""
        if source == "mixed":
            pairs = zip(self.batches(count // 2), self.batches(count // 2, "varied"), strict=True)
            return [batch for pair in pairs for batch in pair]
        return [normalised(part) for part in getattr(self, source)[:count].split(BATCH)]

    def scores(self, student, probe=True):
        """Measure frozen features, and the cosines to the teacher on photographs and on other kinds."""
        found = self.yardsticks(student) if probe else {"probe": None}
        if not isinstance(student, ViT):  # another width, or other tokens
            return found
        return found | {
            "cosines": self.cosines(student, self.judged[:200]),
            "other": self.cosines(student, self.other)[-1],
        }

    @torch.no_grad()
    def features(self, model):
        """Return class tokens, if there are any, and patches of the photographs that judge."""
        # bfloat16 halves the time and moves the features by less than 1 %
        with torch.autocast("cpu", torch.bfloat16):
            parts = [model.forward_features(normalised(part)) for part in self.judged.split(BATCH)]
        tokens, extra = torch.cat([part.last.float() for part in parts]), list(parts[0].extra)
        patches = [place for place in range(tokens.shape[1]) if place not in extra]
        return tokens[:, extra].flatten(1), tokens[:, patches]

    def yardsticks(self, model):
        """Return the probe in per cent, and how many of the teacher's neighbours and patch features are there."""
        theirs = self.theirs = self.features(self.teacher) if self.theirs is None else self.theirs
        ours = theirs if model is self.teacher else self.features(model)
        found = {
            "probe": self.probe(torch.cat([ours[0], ours[1].mean(1)], 1)),
            "neighbours": agreement(ours[1].mean(1), theirs[1].mean(1)),
        }
        same = ours[1].shape[1] == theirs[1].shape[1]  # a pyramid has fewer patches
        return found | {"readable": readable(ours[1], theirs[1])} if same else found

    def probe(self, features):
        """Return the accuracy in per cent, each photograph judged by the three quarters that it is not in."""
        fold = torch.arange(len(features)) % 4
        hits = [classified(features[fold != k], self.labels[fold != k], features[fold == k]) == self.labels[fold == k]
                for k in range(4)]  # fmt: skip
        return 100 * torch.cat(hits).float().mean().item()

    @torch.no_grad()
    def cosines(self, student, images):
        """Return the mean cosine of a token after taking off the teacher's mean token: by layer, and after the norm."""
        sums = []
        for part in images.split(BATCH):
            theirs, ours = (m.forward_features(normalised(part)) for m in (self.teacher, student))
            sums.append([(*theirs.layers, theirs.last), (*ours.layers, ours.last)])
        found = []
        for layer in range(len(sums[0][0])):
            theirs, ours = (torch.cat([pair[side][layer] for pair in sums]) for side in (0, 1))
            mean = theirs.mean((0, 1))
            found.append(round(cosine_similarity(theirs - mean, ours - mean, dim=-1).mean().item(), 4))
        return found


def halved(images):
    """Return images of half the side."""
    x = images if images.dim() == 4 else images[:, None]
    return avg_pool2d(x.float(), 2).round().byte().view(*images.shape[:-2], 56, 56)


def classified(features, labels, asked):
    """Return the classes of other features, by logistic regression."""
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    probe = torch.nn.Linear(features.shape[1], 4)
    torch.nn.init.zeros_(probe.weight)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=80, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = cross_entropy(probe((features - mean) / deviation), labels) + 3e-3 * probe.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return probe((asked - mean) / deviation).argmax(1)


def run(folder, names):
    """Run the rows that have no result yet."""
    benches = {}
    for name in names or RUNS:
        side = 56 if name.startswith("56") else 112
        if side not in benches:
            benches[side] = Bench(folder, side)
        bench = benches[side]
        if name not in bench.done():
            begin = time.process_time()
            values = RUNS[name](bench)
            bench.add(name, **values, cpu=time.process_time() - begin)


def tables(folder):
    """Print the table of docs/results.md, runs that differ by the seed alone as mean ± standard deviation."""
    found, rows = Records(folder).done(), {}
    for name, line in found.items():
        if line.get("probe") is not None or "cosines" in line:
            rows.setdefault(name.partition(", seed ")[0], []).append(line)
    print("| | probe | of the gain | neighbours | readable | cosine, blocks 3, 6, 9, 12 | norm | other kinds | CPU s |")
    print("| --- | --: | --: | --: | --: | --- | --: | --: | --: |")
    for name, lines in rows.items():
        base = found["56: teacher" if name.startswith("56") else "teacher"]
        gain = spread([(line["probe"] - base["majority"]) / (base["probe"] - base["majority"])
                       for line in lines if line.get("probe")], 2)  # fmt: skip
        cells = [spread([line["probe"] for line in lines if line.get("probe")], 1), gain]
        cells += [spread([line[key] for line in lines if key in line], 2) for key in ("neighbours", "readable")]
        layers = [spread([line["cosines"][i] for line in lines if "cosines" in line], 2, False)
                  for i in (2, 5, 8, 11, 12)]  # fmt: skip
        other = spread([line["other"] for line in lines if "other" in line], 2, False)
        seconds = spread([line.get("seconds", 0.0) for line in lines], 0, False)
        print(f"| {name} | {' | '.join([*cells, ' '.join(layers[:4]), layers[4], other, seconds])} |")


def spread(values, digits, deviation=True):
    """Return the mean, and the standard deviation if there are several values; nothing for none."""
    x = torch.tensor(values)
    text = f"{x.mean():.{digits}f}" if values else ""
    return f"{text} ± {x.std():.{digits}f}" if deviation and len(values) > 1 else text


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, place, *rest = sys.argv[1:]
    Path(place).mkdir(parents=True, exist_ok=True)
    commands = {"cache": vision_data.cache, "run": partial(run, names=rest), "tables": tables}
    commands[command](Path(place))
