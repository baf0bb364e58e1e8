"""Starts of the mixers that replace a language model's attention, and the speed of the hybrids."""

import time
from functools import partial

import torch

from transmamba.models import MambaLM, replace_mixers
from transmamba.nn import AttentionCache, Mamba2Mixer, Mamba3Mixer, MambaMixer
from transmamba.nn.ssm import init_step_bias
from transmamba.transfer import AttentionInit, magnitude_importance, subclone

MIXERS = {"mamba": MambaMixer, "mamba2": Mamba2Mixer, "mamba3": Mamba3Mixer}


def started(bench, count, by="sensitivity", first=0, mixer="mamba", options=None, seed=0, start="random"):
    """Replace attention by mixers; return the student and its layers.

    The start is "random", "values" (the first channels are the attention's values), "large steps" (step sizes ten
    times as large) or "attention" (AttentionInit).
    """
    layers = bench.chosen(count, by, first)
    torch.manual_seed(seed)
    build = partial(MIXERS[mixer], **(options or {}))
    student = replace_mixers(bench.teacher, dict.fromkeys(layers, build)).eval()
    if start == "attention":
        read_attention(bench.teacher, student, layers)
    for layer in layers:
        if start == "values":
            read_values(bench.teacher.blocks[layer].mixer, student.blocks[layer].mixer)
        elif start == "large steps":
            with torch.no_grad():
                init_step_bias(student.blocks[layer].mixer.branches[0].ssm.dt_bias, 1e-2, 1.0)
    return student, layers


@torch.no_grad()
def read_values(attention, mixer):
    """Let the first inner channels of a Mamba mixer be the attention's values, of both signs, twice."""
    v = attention.qkv.weight[-attention.sizes[2] :]
    mixer.in_proj.weight[: 4 * len(v)] = torch.cat([v, -v, v, -v])


def read_attention(teacher, student, layers):
    """Start mixers as `AttentionInit` has it."""
    full = MambaLM(teacher.vocab_size, 576, depth=30, d_intermediate=1536, mixer=MambaMixer)
    subclone(teacher, full, magnitude_importance, ssm_from=AttentionInit(heads=9, kv_heads=3, length=256))
    for layer in layers:
        student.blocks[layer].mixer.load_state_dict(full.blocks[layer].mixer.state_dict())


@torch.no_grad()
def decode(bench, steps=10):
    """Measure steps and bytes of the cache after many tokens; keys and values of the attention are random numbers."""
    found = {}
    for count in (0, 15, 30):
        student = started(bench, count)[0] if count else bench.teacher
        for length in (1024, 4096, 16384, 32768):
            cache = student.prefill(torch.zeros(1, 4, dtype=torch.long))[1]
            cache = tuple(filled(part, length) if isinstance(part, AttentionCache) else part for part in cache)
            size = sum(t.numel() * t.element_size() for part in cache for t in tensors_of(part))
            student.step(torch.zeros(1, dtype=torch.long), cache)
            begin = time.process_time()
            for token in range(steps):
                cache = student.step(torch.tensor([token]), cache)[1]
            found[f"{count} of 30, {length} tokens"] = [size, steps / (time.process_time() - begin)]
    return {"decode": found}


def filled(cache, length):
    """Return a cache of as many tokens."""
    keys, values = (torch.randn(1, t.shape[1], length, t.shape[3]) for t in cache.last(None)[:2])
    positions = torch.arange(length)[None]
    return AttentionCache.of(keys, values, positions, torch.tensor([length]), padded=False)


def tensors_of(cache):
    """Return the tensors of a cache."""
    return cache.last(None)[:2] if isinstance(cache, AttentionCache) else [t for t in cache if torch.is_tensor(t)]
