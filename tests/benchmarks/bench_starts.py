"""Starts of a Mamba mixer that should make its state matter: attentions of SmolLM2-135M, readouts in closed form.

    python -m tests.benchmarks.bench_convert cache FOLDER
    python -m tests.benchmarks.bench_starts FOLDER [NAME ...]

As `bench_mixer_fit`, for three layers, with bfloat16 products, on 20 rows of topics and 40 of varied text. Prints R2 on
the text of the fit, the held-out topics and the licence.
"""

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.benchmarks.bench_convert import Bench
from transmamba.nn import MambaMixer
from transmamba.transfer import LeastSquares, mixer_pairs

LAYERS = (5, 13, 22)
SHORT, LONG = (1.0, 0.1), (1.0, 0.01)  # step sizes, one over the tokens that an average is over
STARTS = {
    "random": {"values": False},
    "values": {},
    "values, gates open": {"gate": 2.0},
    "values, short averages": {"share": 1 / 3, "steps": SHORT},
    "values, averages": {"share": 1 / 3},
    "values, two thirds averages, gates open": {"share": 2 / 3, "gate": 2.0},
    "values, two thirds averages, selective": {"share": 2 / 3, "selective": 10.0},
    "random, expand 4": {"values": False, "expand": 4},
    "values, expand 4": {"expand": 4},
    "values, averages, expand 4": {"expand": 4, "share": 1 / 3},
    "values, averages, gates open, expand 4": {"expand": 4, "share": 1 / 3, "gate": 2.0},
    "values, averages, selective, expand 4": {"expand": 4, "share": 1 / 3, "selective": 10.0},
}


@torch.no_grad()
def started(attention, expand=2, values=True, share=0.0, steps=LONG, gate=0.0, selective=1.0):
    """Return a mixer, some of whose channels read the attention's values or average them.

    Args:
        attention: the teacher's.
        expand: inner width.
        values: two thirds of the channels read values, of both signs.
        share: of the channels that average values; they are the last ones.
        steps: largest and smallest step size of the averages.
        gate: bias of every second gate.
        selective: factor of the inputs of the step sizes.
    """
    mixer = MambaMixer(576, expand=expand, bias=gate > 0)
    width, v = mixer.out_proj.in_features, attention.qkv.weight[-attention.sizes[2] :]
    ssm = mixer.branches[0].ssm
    if values:
        copies = width * 2 // 3 // (2 * len(v))
        mixer.in_proj.weight[: 2 * len(v) * copies] = torch.cat([v, -v] * copies)
    ssm.x_proj.weight[: ssm.dt_rank] *= selective
    if share:
        averages(mixer, v, max(1, round(share * width / (2 * len(v)))), steps)
    if gate:
        mixer.in_proj.bias.zero_()
        mixer.in_proj.bias[width::2] = gate
    return mixer.eval()


def averages(mixer, v, count, steps):
    """Let the last channels be leaky averages of the values, of both signs, with `count` step sizes."""
    width, (branch,) = mixer.out_proj.in_features, mixer.branches
    conv, ssm = branch.conv1d, branch.ssm
    channels = slice(width - 2 * len(v) * count, width)
    constant = channels.start - 1
    mixer.in_proj.weight[channels] = torch.cat([v, -v] * count)
    mixer.in_proj.weight[constant] = 0
    conv.weight[constant:] = 0
    conv.weight[channels, :, -1] = 1
    conv.bias[constant:] = 0
    conv.bias[constant] = 1
    # B and C of the first state are one for every token; the others stay as they are
    for row in (ssm.dt_rank, ssm.dt_rank + ssm.d_state):
        ssm.x_proj.weight[row] = 0
        ssm.x_proj.weight[row, constant] = 1 / F.silu(torch.ones(()))
    ssm.D[channels] = 0
    sizes = torch.linspace(math.log(steps[1]), math.log(steps[0]), count).exp().repeat_interleave(2 * len(v))
    ssm.dt_bias[channels] = sizes + torch.log(-torch.expm1(-sizes))


def read(teacher, rows):
    """Return layer -> inputs and outputs of its attention."""
    found = {layer: [] for layer in LAYERS}
    for pairs in mixer_pairs(teacher, rows, LAYERS):
        for layer in LAYERS:
            found[layer].append((pairs[layer].inputs.float(), pairs[layer].outputs.float()))
    return {layer: [torch.cat(part) for part in zip(*pairs, strict=True)] for layer, pairs in found.items()}


@torch.no_grad()
def sums(mixer, x, y):
    """Return the least squares of the inputs of the mixer's readout, without the first token of a row."""
    bias = mixer.out_proj.bias is not None
    fit, found = LeastSquares(mixer.out_proj.in_features, y.shape[-1], bias=bias, products=torch.float32), []
    handle = mixer.out_proj.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float()))
    for part, wanted in zip(x.split(8), y.split(8), strict=True):
        mixer(part)
        fit.update(found.pop()[:, 1:], wanted[:, 1:])
    handle.remove()
    return fit


def main(folder, *names):
    """Print a line per start and layer."""
    bench = Bench(Path(folder))
    texts = {"fit": bench.batches(20, 0, 40)} | {name: list(rows.split(8)) for name, rows in bench.test.items()}
    data = {name: read(bench.teacher, rows) for name, rows in texts.items()}
    for name in names or STARTS:
        for layer in LAYERS:
            torch.manual_seed(0)
            mixer = started(bench.teacher.blocks[layer].mixer, **STARTS[name])
            fits = {text: sums(mixer, *pairs[layer]) for text, pairs in data.items()}
            for ridge in (1e-3, 1e-2):
                solved = fits["fit"].solve(ridge)
                cells = " | ".join(f"{fit.r2(solved.weight, solved.bias):.3f}" for fit in fits.values())
                print(f"| {name} | {layer} | {ridge:.0e} | {cells} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.autocast("cpu", torch.bfloat16):
        main(*sys.argv[1:])
