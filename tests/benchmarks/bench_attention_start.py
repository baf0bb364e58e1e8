"""Find out why `AttentionInit` does nothing on SmolLM2-135M: the rest that each simplification leaves.

    python -m tests.benchmarks.bench_convert cache FOLDER
    python -m tests.benchmarks.bench_attention_start FOLDER [LAYER ...]

For the held-out topics: the share of the attention's output (variance about the mean over tokens, the first token left
out) that is left when one thing after the other is taken from the attention, as it is and after the best factor for all
channels. 0 is a deletion, below 0 it is worse than one.
"""

import math
import sys
from pathlib import Path

import torch

from tests.benchmarks.bench_convert import Bench
from transmamba.models import MambaLM
from transmamba.nn import MambaMixer
from transmamba.transfer import AttentionInit, magnitude_importance, mixer_pairs, subclone

LENGTH = 256


def scores(attention, x, *, rotate):
    """Return scores (batch, head, query, key) before the mask, and the values of all heads."""
    positions = torch.arange(x.shape[1]).expand(len(x), -1) * (1 if rotate else 0)
    q, k, v = attention._heads(x, positions)
    repeats = attention.heads // attention.kv_heads
    k, v = (t.repeat_interleave(repeats, 1) for t in (k, v))
    return attention.scale * q @ k.transpose(-1, -2), v


def output(attention, weights, v):
    """Return the output projection of weighted values."""
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


def left(y, wanted):
    """Return the share that is left, as it is and after the best factor."""
    y, wanted = (t[:, 1:].flatten(0, 1).double() for t in (y, wanted))
    factor = (y * wanted).sum() / y.square().sum().clamp_min(1e-30)
    spread = (wanted - wanted.mean(0)).square().sum()
    return tuple(float(1 - (f * y - wanted).square().sum() / spread) for f in (1.0, factor))


def simplified(attention, x):
    """Yield the output of attention with more and more taken away."""
    rotated, v = scores(attention, x, rotate=True)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    share = 1 / torch.arange(1, LENGTH + 1)[:, None]

    def softmax(s):
        return s.masked_fill(~causal, -torch.inf).softmax(-1)

    weights = softmax(rotated)
    print(f"weight on the first token {weights[:, :, 1:, 0].mean():.2f},", end=" ")
    print("score of a token to itself and its past: deviation", f"{rotated[:, :, causal].std():.2f}")
    yield "deleted", torch.zeros_like(x)
    yield "as it is", output(attention, weights, v)
    first = weights.clone()
    first[:, :, 1:, 0] = 0
    yield "without the first token (the sink)", output(attention, first, v)
    plain, _ = scores(attention, x, rotate=False)
    yield "without rotation", output(attention, softmax(plain), v)
    mean = plain.mean(1, keepdim=True)
    yield "without rotation, one mean of the heads' scores", output(attention, softmax(mean).expand_as(plain), v)
    yield "scores instead of their exponential: (1 + s) / t", output(attention, (1 + rotated) * causal * share, v)
    yield "the same without rotation", output(attention, (1 + plain) * causal * share, v)
    linear = plain.mean(1, keepdim=True).expand_as(plain)
    yield "without rotation and exponential, mean of heads: s / length", output(attention, linear * causal / LENGTH, v)
    yield "equal weights: 1 / t", output(attention, (causal * share).expand_as(plain), v)


def started(teacher, layer):
    """Return a Mamba mixer that `AttentionInit` started."""
    torch.manual_seed(0)
    student = MambaLM(teacher.vocab_size, 576, depth=30, d_intermediate=1536, mixer=MambaMixer).eval()
    subclone(teacher, student, magnitude_importance, ssm_from=AttentionInit(heads=9, kv_heads=3, length=LENGTH))
    return student.blocks[layer].mixer


def opened(mixer, x):
    """Return a mixer's output with its gate at one."""
    inner = mixer.out_proj.in_features
    handle = mixer.in_proj.register_forward_hook(lambda _, inputs, y: _open(y, inner))
    y = mixer(x)
    handle.remove()
    return y


def _open(projected, inner):
    return torch.cat([projected[..., :inner], torch.full_like(projected[..., inner:], 1.2784645)], -1)


@torch.no_grad()
def main(folder, layers):
    """Print a table per layer."""
    bench = Bench(folder)
    pairs = next(mixer_pairs(bench.teacher, [bench.test["topics"]], layers))
    for layer, pair in pairs.items():
        attention, x, wanted = bench.teacher.blocks[layer].mixer, pair.inputs, pair.outputs
        print(f"layer {layer}: ", end="")
        for name, y in simplified(attention, x):
            print(f"  {name}: {left(y, wanted)[0]:.3f} {left(y, wanted)[1]:.3f}")
        mixer = started(bench.teacher, layer)
        for name, y in (("AttentionInit", mixer(x)), ("AttentionInit, gate held open", opened(mixer, x))):
            size = math.sqrt(float(y[:, 1:].square().mean() / wanted[:, 1:].square().mean()))
            print(f"  {name}: {left(y, wanted)[0]:.3f} {left(y, wanted)[1]:.3f}, size {size:.3f} of the attention's")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), [int(layer) for layer in sys.argv[2:]] or [1, 5, 13, 22])
