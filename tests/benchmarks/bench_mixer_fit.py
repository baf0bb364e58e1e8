"""One attention of SmolLM2-135M from the features of one Mamba mixer: the worth of its random inside.

    python -m tests.benchmarks.bench_convert cache FOLDER
    python -m tests.benchmarks.bench_mixer_fit FOLDER [--layer 13] [--rows 80] [--steps 75] [--seeds 1]

Teacher-forced: a mixer gets the teacher's attention's inputs, its readout is solved on rows of topics and vim's help
by turns, and R2 is the share of the attention's variance that it explains, on the tokens of the fit, on the held-out
topics and on the licence, without the first token of a row. With `--steps`, gradient steps on the whole mixer before or
after. CPU seconds of one thread.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tests.benchmarks.bench_convert import Bench
from tests.benchmarks.hybrids import read_values
from transmamba.nn import Mamba2Mixer, Mamba3Mixer, MambaMixer
from transmamba.transfer import LeastSquares, mixer_pairs

RIDGES = (1e-4, 1e-3, 1e-2)


def direct(share, gain, **options):
    """Return a builder of mixers in which some channels lack the direct path D, with B and C larger."""

    def build(dim):
        mixer = MambaMixer(dim, **options)
        ssm = mixer.branches[0].ssm
        with torch.no_grad():
            ssm.D[torch.arange(len(ssm.D)) % 2 >= 2 * share] = 0
            ssm.x_proj.weight[ssm.dt_rank :] *= gain
        return mixer

    return build


MIXERS = {
    "Mamba": MambaMixer,
    "Mamba, the teacher's values in its channels": MambaMixer,  # see `features`
    "Mamba, 4 states": partial(MambaMixer, d_state=4),
    "Mamba, 64 states": partial(MambaMixer, d_state=64),
    "Mamba, expand 1": partial(MambaMixer, expand=1),
    "Mamba, expand 4": partial(MambaMixer, expand=4),
    "Mamba, convolution of 2": partial(MambaMixer, d_conv=2),
    "Mamba, convolution of 8": partial(MambaMixer, d_conv=8),
    "Mamba, convolution of 16": partial(MambaMixer, d_conv=16),
    "Mamba, no D": direct(0, 1),
    "Mamba, D in half of the channels, B and C x 10": direct(0.5, 10),
    "Mamba-2, 64 states": partial(Mamba2Mixer, d_state=64),
    "Mamba-3, 64 states": partial(Mamba3Mixer, d_state=64),
}


def sums(mixer, x, y):
    """Return the least squares of the inputs of the mixer's readout, without the first token of a row."""
    fit, found = LeastSquares(mixer.out_proj.in_features, y.shape[-1], products=torch.float32), []
    handle = mixer.out_proj.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for part, wanted in zip(x.split(8), y.split(8), strict=True):
            found.clear()
            mixer(part)
            fit.update(found[0][:, 1:], wanted[:, 1:])
    handle.remove()
    return fit


def solve(mixer, x, y, ridge=1e-3):
    """Solve the readout."""
    with torch.no_grad():
        mixer.out_proj.weight.copy_(sums(mixer, x, y).solve(ridge).weight)


def train(mixer, x, y, steps, generator):
    """Take steps of AdamW on the whole mixer."""
    optimizer = torch.optim.AdamW(mixer.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    size = y.square().mean()
    for _ in range(steps):
        rows = torch.randint(len(x), (8,), generator=generator)
        loss = (mixer(x[rows]) - y[rows]).square().mean() / size
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def scores(mixer, weight, data):
    """Return R2 on all texts."""
    return " | ".join(f"{sums(mixer, *pair).r2(weight):.3f}" for pair in data.values())


def features(data, attention):
    """Print a line per kind of mixer and ridge."""
    for name, build in MIXERS.items():
        torch.manual_seed(0)
        mixer = build(576).eval()
        if "values" in name:
            read_values(attention, mixer)
        start = time.process_time()
        fits = {text: sums(mixer, *pair) for text, pair in data.items()}
        for ridge in RIDGES:
            weight = fits["fit"].solve(ridge).weight
            cells = " | ".join(f"{fit.r2(weight):.3f}" for fit in fits.values())
            print(f"| {name} | {ridge:.0e} | {cells} | {time.process_time() - start:.1f} |", flush=True)


def steps_and_solutions(data, steps, seed):
    """Print a line per order of gradient steps and closed form."""
    for plan in ("s", "t", "st", "ts", "sts", "ttt", "tststs"):
        torch.manual_seed(seed)
        mixer, generator = MambaMixer(576), torch.Generator().manual_seed(seed)
        start = time.process_time()
        for part in plan:
            if part == "s":
                solve(mixer, *data["fit"])
            else:
                train(mixer, *data["fit"], steps if plan.count("t") == 1 else steps // 3, generator)
        seconds = time.process_time() - start
        print(f"| {seed} | {plan} | {scores(mixer, mixer.out_proj.weight, data)} | {seconds:.1f} |", flush=True)


def main():
    """Read the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, value in {"layer": 13, "rows": 80, "steps": 75, "seeds": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    bench = Bench(chosen.folder)
    batches = {"fit": bench.batches(chosen.rows // 2, chosen.rows // 2)}
    batches |= {name: list(rows.split(8)) for name, rows in bench.test.items()}
    data = {}
    for name, rows in batches.items():
        pairs = [found[chosen.layer] for found in mixer_pairs(bench.teacher, rows, [chosen.layer])]
        data[name] = tuple(torch.cat([getattr(pair, part) for pair in pairs]) for part in ("inputs", "outputs"))
    features(data, bench.teacher.blocks[chosen.layer].mixer)
    for seed in range(chosen.seeds if chosen.steps else 0):
        steps_and_solutions(data, chosen.steps, seed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
