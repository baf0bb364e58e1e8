"""Find out why gradient steps after the closed form lose its gains: DINOv2-S with Mamba mixers, step by step.

    python -m tests.benchmarks.bench_vision cache FOLDER              # once: the teacher and the pictures
    python -m tests.benchmarks.bench_vision_steps FOLDER [NAME ...]   # the rows of VARIANTS

AdamW from the closed form on 1,000 photographs, or from the teacher itself, which has nothing to learn. Photographs of
56 x 56 pixels, batch 32, forward in bfloat16. The rate rises over the first steps and falls over the second half.
Printed are losses, and cosines as in `bench_vision`, on 64 photographs, after blocks 1, 3, 6, 9, 12 and the last norm.
"""

import copy
import sys
from functools import cached_property
from pathlib import Path

import torch

from tests.benchmarks.bench_vision import Bench
from tests.benchmarks.vision_data import normalised
from tests.benchmarks.vision_students import random_batch, solved

SHOWN, MARKS = (0, 2, 5, 8, 11, 12), (1, 3, 6, 10, 20)
# part that is trained, rate, measure of a step, steps, and how many of them warm up
VARIANTS = {
    "teacher itself": ("all", 3e-4, "", 6, 2),
    "teacher itself, 3e-5": ("all", 3e-5, "", 6, 2),
    "teacher itself, 1e-5": ("all", 1e-5, "", 6, 2),
    "teacher itself, 1e-6": ("all", 1e-6, "", 6, 2),
    "all": ("all", 3e-4, "", 20, 2),
    "readouts": ("readouts", 3e-4, "", 6, 2),
    "insides": ("insides", 3e-4, "", 6, 2),
    "mlp": ("mlp", 3e-4, "", 6, 2),
    "all, relative to tensors": ("all", 1e-3, "tensor", 16, 2),
    "mixers, relative to tensors": ("mixers", 1e-3, "tensor", 16, 2),
    "insides, relative to tensors": ("insides", 3e-3, "tensor", 16, 2),
    "all, relative to rows": ("all", 3e-4, "row", 24, 8),
    "mixers, relative to rows": ("mixers", 1e-3, "row", 24, 8),
    "insides, relative to rows": ("insides", 1e-3, "row", 24, 8),
}


def all_tokens(model, images):
    """Return the streams after all blocks, and the tokens after the last norm."""
    features = model.forward_features(images)
    return [x.float() for x in (*features.layers, features.last)]


def trained(model, part):
    """Return the parameters of a part of every block; the others stay as they are."""
    model.requires_grad_(part == "all")
    for block in model.blocks if part != "all" else ():
        readout = set(block.mixer.out_proj.parameters())
        around = {p for module in (block.mlp, block.norm1, block.norm2) for p in module.parameters()}
        mixer = set(block.mixer.parameters())
        for p in {"readouts": readout, "insides": mixer - readout, "mixers": mixer, "mlp": around}[part]:
            p.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def size(parameter, by):
    """Return the measure of a step: one, or the root mean square of a tensor or of each of its rows."""
    p = parameter.detach()
    whole = p.square().mean().sqrt()
    if not by:
        return torch.ones(())
    if by == "tensor":
        return whole.clamp_min(1e-3)
    if p.dim() == 1:
        return p.abs().clamp_min(0.1 * whole + 1e-6)
    return p.square().mean(tuple(range(1, p.dim())), keepdim=True).sqrt().clamp_min(1e-5)


class Steps(Bench):
    """Trains a copy of the closed form, or of the teacher."""

    def __init__(self, folder):
        super().__init__(folder, 56)
        with torch.no_grad():
            tokens = all_tokens(self.teacher, normalised(self.judged[:64]))
        self.spread = [x.var((0, 1), correction=0).mean() for x in tokens]

    @cached_property
    def closed(self):
        """Return the closed form on 1,000 photographs."""
        return solved(self, count=1000)

    def loss(self, model, images, by):
        """Return the squared error of all layers, for relative steps each by the teacher's variance there."""
        with torch.no_grad():
            theirs = all_tokens(self.teacher, images)
        with torch.autocast("cpu", torch.bfloat16):
            ours = all_tokens(model, images)
        errors = [(a - b).square().mean() for a, b in zip(ours, theirs, strict=True)]
        if not by:
            return sum(errors[:-1]) / len(errors[:-1]) + errors[-1]
        return sum(error / variance for error, variance in zip(errors, self.spread, strict=True)) / len(errors)

    def run(self, name):
        """Take the steps and print their effect."""
        part, rate, by, steps, warm = VARIANTS[name]
        start = self.teacher if name.startswith("teacher") else self.closed
        model = copy.deepcopy(start).train()
        parameters = trained(model, part)
        sizes, generator = [size(p, by) for p in parameters], torch.Generator().manual_seed(1)
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
        print(name, "\n  before", [self.cosines(start, self.judged[:64])[i] for i in SHOWN])
        for step in range(1, steps + 1):
            optimizer.param_groups[0]["lr"] = rate * min(1, step / warm, 2 * (steps - step + 1) / steps)
            optimizer.zero_grad()
            loss = self.loss(model, random_batch(self.photographs, generator), by)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            before = [p.detach().clone() for p in parameters]
            optimizer.step()
            with torch.no_grad():
                for p, old, factor in zip(parameters, before, sizes, strict=True):
                    p.copy_(old + (p - old) * factor)
            shown = [self.cosines(model, self.judged[:64])[i] for i in SHOWN] if step in MARKS or step == steps else ""
            print(f"  step {step}: loss {loss.item():.3f}", shown, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    bench = Steps(Path(sys.argv[1]))
    for chosen in sys.argv[2:] or VARIANTS:
        bench.run(chosen)
