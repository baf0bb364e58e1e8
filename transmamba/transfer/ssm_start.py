"""Start a state-space mixer as the linear attention nearest to a teacher's softmax attention.

h_t = h_{t-1} + dt B_t x_t, y_t = C_t h_t is linear attention once the decay is negligible: C_t is the query, B_t the
key, x_t the value. dt = 1 / length turns the sum over tokens into a mean, as softmax has it for equal scores.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from transmamba._layer_maps import LayerMap, resolve_layer_map
from transmamba.transfer.attention_weights import (
    AttentionInit,
    AttentionWeights,
    MixerInput,
    Start,
    constant_direction,
    read_attention,
)
from transmamba.transfer.linear_attention import build_mamba, build_mamba2, check_mamba, check_mamba2
from transmamba.transfer.source import Source
from transmamba.transfer.teachers import Architecture
from transmamba.transfer.tensor_checks import check_target
from transmamba.transfer.write import Write

IN, OUT = "in_proj.weight", "out_proj.weight"

LayerTensors = dict[int, dict[str, Tensor]]
Check = Callable[[Start, int, Mapping[str, Tensor]], None]
Builder = Callable[[Start, AttentionWeights, Mapping[str, Tensor], MixerInput], dict[str, Tensor]]


class Started(NamedTuple):
    """The checked writes of every mixer, the canonical names they read, and the parts lost in linear attention."""

    writes: list[Write]
    used: set[str]
    differs: list[str]


def plan_attention(
    init: AttentionInit,
    source: Source,
    target: Mapping[str, Tensor],
    layer_map: LayerMap,
    kept: tuple[int, ...] | None,
    norms: Mapping[str, Tensor],
) -> Started:
    """Plan the writes of every mixer.

    Raises:
        ValueError: names, heads or widths do not fit.
    """
    teacher = source.translated
    blocks = [int(hit[1]) for name in target if (hit := re.match(r"blocks\.(\d+)\.", name))]
    mixers = {int(hit[1]) for name in target if (hit := re.match(rf"blocks\.(\d+)\.mixer\.({IN}|{OUT})$", name))}
    if teacher is None or teacher.architecture.kind == "ssm" or not mixers:
        raise ValueError(
            "no attention to start from: expected a Transformer as teacher, and student names such as"
            f" blocks.0.mixer.in_proj.weight; got {', '.join(list(source)[:4])} and {', '.join(list(target)[:4])}"
        )
    layers = resolve_layer_map(layer_map, 1 + max(blocks), teacher.architecture.depth)
    of_layer: LayerTensors = {}
    writes, used = [], set()
    for layer in sorted(mixers & set(layers)):
        names = [f"blocks.{layers[layer]}.attn.{part}.weight" for part in ("q", "k", "v", "out")]
        writes += _layer(init, layer, names, of_layer, source, target, kept, norms)
        used |= set(names) | {name.removesuffix("weight") + "bias" for name in names}
    return Started(writes, used, _left_out(teacher.architecture, [*source]))


def _left_out(facts: Architecture, names: list[str]) -> list[str]:
    """List the parts of softmax attention that its linear counterpart here lacks."""
    parts = {
        "rotary positions": any(rope is not None for rope in facts.ropes),
        "query and key norms": any(name.endswith("attn.q_norm.weight") for name in names),
        "windows": any(window is not None for window in facts.windows),
        "the cap on scores": facts.softcap is not None,
        "relative positions": any(name.endswith("attn.relative_bias") for name in names),
    }
    missing = [part for part, there in parts.items() if there]
    return [f"attention start: without the teacher's {', '.join(missing)}"] if missing else []


def _layer(
    init: AttentionInit,
    layer: int,
    names: list[str],
    of_layer: LayerTensors,
    source: Source,
    target: Mapping[str, Tensor],
    kept: tuple[int, ...] | None,
    norms: Mapping[str, Tensor],
) -> list[Write]:
    prefix = f"blocks.{layer}.mixer."
    mixer = {name.removeprefix(prefix): tensor for name, tensor in target.items() if name.startswith(prefix)}
    if not {IN, OUT} <= set(mixer):
        raise ValueError(
            f"block {layer} has only some of the tensors that a mixer and an attention need, {', '.join(mixer)}:"
            " exclude whole mixers, blocks.3.mixer.*"
        )
    for name in names:
        source.check(name)
        if not bool(torch.isfinite(source[name]).all()):
            raise ValueError(
                f"teacher tensor {source.label(name)} has non-finite numbers: attention cannot be read from it"
            )
    for name, tensor in mixer.items():
        check_target(prefix + name, tensor)
    start = _check_heads(init, names, source)
    _check_width(layer, names, source, mixer, kept)
    reads = MixerInput("in_proj.bias" in mixer, None if "in_proj.bias" in mixer else constant_direction(layer, norms))
    check, build, made = _builder(prefix, mixer)
    check(start, source.shape(names[-1])[1] // start.heads, mixer)

    def tensors() -> dict[str, Tensor]:
        if layer not in of_layer:
            of_layer.clear()  # the numbers of one layer at a time
            of_layer[layer] = build(start, read_attention(start, names, source, kept, reads.has_constant), mixer, reads)
        return of_layer[layer]

    gate = "" if reads.has_constant else ", gate and biases as initialised"
    origin = source.label(names[0]).removesuffix(".weight")
    return [
        Write(
            prefix + name,
            origin,
            partial(lambda leaf: iter([tensors()[leaf]]), name),
            tuple(mixer[name].shape),
            (None,) * mixer[name].dim(),
            False,
            mixer[name].numel(),
            "linear attention" + (gate if name == IN else ""),
        )
        for name in made
    ]


def _check_heads(init: AttentionInit, names: list[str], source: Source) -> Start:
    """Fill in the teacher's heads where `init` leaves them open, and check them against the teacher's configuration.

    Raises:
        ValueError: the teacher has other heads, or their number is unknown.
    """
    facts: Architecture = source.translated.architecture  # type: ignore[union-attr]
    heads = init.heads or facts.heads
    if heads is None:
        raise ValueError("the teacher's checkpoint does not say how many heads it has: AttentionInit(heads=..., ...)")
    groups = init.kv_heads or (facts.kv_heads if init.heads in (None, facts.heads) and facts.heads else heads) or heads
    rows, out = sum(source.shape(name)[0] for name in names[:-1]), source.shape(names[-1])[1]
    if rows % (heads + 2 * groups) or rows // (heads + 2 * groups) * heads != out:
        raise ValueError(
            f"teacher layer of {source.label(names[0])} has {rows} query, key and value rows and {out} inputs to its"
            f" output projection: that is not {heads} heads with {groups} key heads"
        )
    if facts.heads is not None and (heads, groups) != (facts.heads, facts.kv_heads):
        raise ValueError(
            f"the teacher has {facts.heads} heads and {facts.kv_heads} key heads, AttentionInit was given {heads} and"
            f" {groups}: leave heads and kv_heads out"
        )
    return Start(heads, groups, init.length, init.decay)


def _check_width(
    layer: int, names: list[str], source: Source, mixer: Mapping[str, Tensor], kept: tuple[int, ...] | None
) -> None:
    width = source.shape(names[0])[1]
    ours, stays = mixer[IN].shape[1], width if kept is None else len(kept)
    if ours != stays:
        raise ValueError(
            f"student block {layer} reads {ours} channels, {stays} of the teacher's {width} are kept: name the stream"
            " 'residual' in the plan, and let the student be no wider than the teacher"
        )


def _builder(prefix: str, mixer: Mapping[str, Tensor]) -> tuple[Check, Builder, list[str]]:
    if any(name.endswith("x_proj.weight") for name in mixer):
        return check_mamba, build_mamba, list(mixer)
    if "ssm.A_log" in mixer and mixer["ssm.A_log"].dim() == 1:
        return check_mamba2, build_mamba2, [name for name in mixer if name != "norm.weight"]
    raise ValueError(
        f"{prefix.rstrip('.')} is neither a Mamba nor a Mamba-2 mixer by its names: {', '.join(mixer)}; exclude the"
        " block's mixer, or initialise it yourself"
    )
