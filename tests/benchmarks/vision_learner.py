"""Students of `bench_vision_rows`: starts, calibrators and losses, and the outputs of their teacher."""

import copy
from functools import cached_property

import torch
import torch.nn.functional as F

import transmamba as tm
from tests.benchmarks import vision_data
from tests.benchmarks.vision_data import PATCH, normalised
from transmamba import distill, transfer

SIDE, DIM, DEPTH, BATCH, TRAIN = 56, 96, 6, 32, 1500
MIRRORS = ((), (-1,), (-2,), (-1, -2))
DIRECTIONAL = {"bidirectional", "multi", "tuned", "directed"}
RELATIONS = 10  # weight: differences of cosines are a tenth of the other losses at the start


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
        self.folder, self.data = folder, torch.load(folder / "small.pt")
        self.teacher = tm.models.ViT.from_pretrained(folder / "teacher56")
        self.images, self.labels = normalised(self.data["images"]), self.data["labels"]
        self.batches = list(self.images[:1000].split(BATCH))
        self.made = {}
        self.axes = transfer.principal_axes(self.teacher, self.batches, DIM)

    @cached_property
    def matched(self):
        """Return the teacher's layers at the student's depths [layer mirror photograph token channel], the last normed.

        Read from a file, which is written at the first use.
        """
        path = self.folder / "layers.pt"
        if not path.exists():
            torch.save(self.layers(), path)
        return torch.load(path)

    @torch.no_grad()
    def layers(self):
        """Compute `matched`."""
        parts = []
        for axes in MIRRORS:
            x = self.images[:TRAIN].flip(axes) if axes else self.images[:TRAIN]
            found = [self.teacher.forward_features(part) for part in x.split(128)]
            parts.append([torch.cat([f.layers[i] for f in found])[:, 1:].half() for i in range(1, 11, 2)])
        last = self.data["tokens"][None]
        return torch.cat([torch.stack([torch.stack(layer) for layer in zip(*parts, strict=True)]), last])

    @cached_property
    def scale(self):
        """Return mean and standard deviation of each channel of `matched`, over all photographs and tokens."""
        flat = [layer.flatten(0, 2).float() for layer in self.matched]
        return [(x.mean(0), x.std(0)) for x in flat]

    def targets(self, mirror, pick, centred=False):
        """Return the teacher's layers for some photographs, on request with mean 0 and deviation 1 by channel."""
        found = [layer[mirror, pick].float() for layer in self.matched]
        return [(x - m) / s for x, (m, s) in zip(found, self.scale, strict=True)] if centred else found

    def student(self, start, seed, orders):
        """Return a student and where its channels were in the teacher; each is made once."""
        if (start, seed, orders) not in self.made:
            self.made[start, seed, orders] = *self.new(start, seed, orders), torch.get_rng_state()
        student, pad, state = self.made[start, seed, orders]
        torch.set_rng_state(state)
        return copy.deepcopy(student), pad

    def new(self, start, seed, orders):
        """Make a student."""
        torch.manual_seed(seed)
        student = tm.models.VisionMamba(SIDE, PATCH, dim=DIM, depth=DEPTH, num_classes=4, orders=orders)
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
    """A student with the calibrators and losses of a row.

    Args:
        setting: what it learns from.
        parts: of the row: its start, its losses, "head" to solve the head first, "four" for four directions.
        seed: of the student.
        own: numbers of the photographs whose labels it may use.
    """

    def __init__(self, setting, parts, seed, own):
        super().__init__()
        orders = tm.models.SNAKES if "four" in parts else ("forward", "backward")
        self.model, pad = setting.student(parts[0], seed, orders)
        self.parts, self.setting = parts, setting
        if "head" in parts:
            with torch.no_grad():
                found = solved_head(setting.features(self.model.eval(), own), setting.labels[own])
                self.model.head.weight.copy_(found[0])
                self.model.head.bias.copy_(found[1])
        count = {"last": 1, "adaptive": DEPTH, "bidirectional": DEPTH, "multi": DEPTH, "tuned": DEPTH}
        names = [name for name in parts if name in count
                 for _ in range(len(orders) if name in DIRECTIONAL else 1)]  # fmt: skip
        self.bridges = torch.nn.ModuleList(
            distill.LayerCalibrators([DIM] * count[name], 384, pad=pad) for name in names
        )
        self.adaptive, self.both = tm.AdaptiveLayerDistill(), tm.BidirectionalDistill()
        self.last, self.soft = distill.LastFeatureDistill(), distill.LogitsDistill(temperature=4.0)
        self.multi, self.relations = distill.MultiDirectionalDistill(), distill.TokenRelationDistill()
        each = tm.AdaptiveLayerDistill(teacher_layers=list(range(DEPTH)))
        self.tuned = distill.MultiDirectionalDistill(each, order="raster")

    def forward(self, pick, mirror):
        """Return labels and distillation, each of weight 1 but for the relations."""
        x = self.setting.images[pick].flip(MIRRORS[mirror]) if mirror else self.setting.images[pick]
        features = self.model.forward_features(x, directions=bool(DIRECTIONAL & set(self.parts)))
        logits = self.model.head(features.last.mean(1))
        loss = F.cross_entropy(logits, self.setting.labels[pick])
        if "logits" in self.parts:
            loss = loss + self.soft(logits, self.setting.data["logits"][mirror, pick])
        if "relations" in self.parts:
            ours = (*features.layers[:-1], features.last)
            loss = loss + RELATIONS * self.relations(ours, self.setting.targets(mirror, pick))
        if "directed" in self.parts:
            ours, theirs = self.directed(x, features), self.setting.targets(mirror, pick)
            loss = loss + RELATIONS * self.relations(sum(ours, []), theirs * len(ours))
        return loss + self.features_loss(x, features, mirror, pick) if self.bridges else loss

    def features_loss(self, x, features, mirror, pick):
        """Return the loss of the features that go through calibrators."""
        target = self.setting.data["tokens"][mirror, pick].float()
        if "last" in self.parts:
            return self.last(self.bridges[0]([features.last])[0], target)
        if "adaptive" in self.parts:
            return self.adaptive(self.bridges[0](features.layers), target)
        if "tuned" in self.parts:
            return self.tuned_loss(x, features, mirror, pick)
        sides = [bridge(side) for bridge, side in zip(self.bridges, features.directions, strict=True)]
        if "bidirectional" in self.parts:
            return self.both(*sides, target)
        return self.multi(dict(zip(tm.models.SNAKES, sides, strict=True)), target, grid=features.grid)

    def tuned_loss(self, x, features, mirror, pick):
        """Return the loss of each block's input plus a direction, towards the centred layer of the same depth."""
        sides = self.directed(x, features)
        ours = {
            name: bridge(side) for name, bridge, side in zip(("forward", "backward"), self.bridges, sides, strict=True)
        }
        return self.tuned(ours, self.setting.targets(mirror, pick, centred=True))

    def directed(self, x, features):
        """Return each block's input plus its share of a direction, for each direction, in natural order."""
        inputs = [self.model.patch_embed(x) + self.model.pos_embed, *features.layers[:-1]]
        return [[a + b for a, b in zip(inputs, side, strict=True)] for side in distill.natural_shares(features)]
