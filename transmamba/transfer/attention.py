"""Start a state-space mixer as the linear attention nearest to a teacher's softmax attention.

h_t = h_{t-1} + dt B_t x_t, y_t = C_t h_t is linear attention once the decay is negligible: C_t is the query, B_t the
key, x_t the value. dt = 1 / length turns the sum over tokens into a mean, as softmax has it for equal scores.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from transmamba._checkpoint import read, shape_of
from transmamba.transfer.circuits import AttentionInit, Circuit, Input, constant_direction, read_circuit
from transmamba.transfer.layer_maps import LayerMap
from transmamba.transfer.matching import Plan, match
from transmamba.transfer.mixers import build_mamba, build_mamba2, check_mamba, check_mamba2
from transmamba.transfer.tensors import check_source, check_target
from transmamba.transfer.writes import Write

IN, OUT = "blocks.{i}.mixer.in_proj.weight", "blocks.{i}.mixer.out_proj.weight"

# what feeds the two projections: query, key and value (or all in one), and the output
ATTENTION = {
    IN: (
        "blocks.{i}.attn.qkv.weight"
        " | layers.{i}.attention.q_proj.weight + layers.{i}.attention.k_proj.weight"
        " + layers.{i}.attention.v_proj.weight"
        " | encoder.layer.{i}.attention.attention.query.weight + encoder.layer.{i}.attention.attention.key.weight"
        " + encoder.layer.{i}.attention.attention.value.weight"
        " | encoder.layer.{i}.attention.self.query.weight + encoder.layer.{i}.attention.self.key.weight"
        " + encoder.layer.{i}.attention.self.value.weight"
        " | vision_model.encoder.layers.{i}.self_attn.q_proj.weight"
        " + vision_model.encoder.layers.{i}.self_attn.k_proj.weight"
        " + vision_model.encoder.layers.{i}.self_attn.v_proj.weight"
        " | layers.{i}.self_attn.q_proj.weight + layers.{i}.self_attn.k_proj.weight"
        " + layers.{i}.self_attn.v_proj.weight",
        "query+key+value residual",
    ),
    OUT: (
        "blocks.{i}.attn.proj.weight | layers.{i}.attention.o_proj.weight"
        " | encoder.layer.{i}.attention.output.dense.weight | vision_model.encoder.layers.{i}.self_attn.out_proj.weight"
        " | encoder.layers.{i}.self_attn.out_proj.weight | layers.{i}.self_attn.o_proj.weight",
        "residual value",
    ),
}


Slot = dict[int, dict[str, Tensor]]
Check = Callable[[AttentionInit, int, Mapping[str, Tensor]], None]
Builder = Callable[[AttentionInit, Circuit, Mapping[str, Tensor], Input], dict[str, Tensor]]


def plan_attention(
    init: AttentionInit,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    layer_map: LayerMap,
    kept: tuple[int, ...] | None,
    norms: Mapping[str, Tensor],
) -> list[Write]:
    """The checked writes of every mixer.

    Raises:
        ValueError: names, heads or widths do not fit.
    """
    found = match(_tower(target), target, source, layer_map)
    sources: dict[int, dict[str, list[str]]] = {}
    for copy in found.copies:
        layer, leaf = int(copy.student.split(".")[1]), IN if ".in_proj." in copy.student else OUT
        sources.setdefault(layer, {}).setdefault(leaf, []).append(copy.teacher)
    if not sources:
        raise ValueError(
            "no attention to start from: expected teacher names such as blocks.0.attn.qkv.weight or"
            " layers.0.self_attn.q_proj.weight, and student names such as blocks.0.mixer.in_proj.weight; got"
            f" {', '.join(list(source)[:4])} and {', '.join(list(target)[:4])}"
        )
    slot: Slot = {}
    return [
        write
        for layer, names in sources.items()
        for write in _layer(init, layer, names, slot, source, target, kept, norms)
    ]


def _tower(target: Mapping[str, Tensor]) -> Plan:
    """`ATTENTION`; of a CLIP with both towers, a student that reads tokens takes the text's."""
    if "embedding.weight" not in target:
        return ATTENTION
    return {leaf: (pattern.replace("vision_model", "text_model"), axes) for leaf, (pattern, axes) in ATTENTION.items()}


def _layer(
    init: AttentionInit,
    layer: int,
    names: Mapping[str, list[str]],
    slot: Slot,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    kept: tuple[int, ...] | None,
    norms: Mapping[str, Tensor],
) -> list[Write]:
    prefix = f"blocks.{layer}.mixer."
    mixer = {name.removeprefix(prefix): tensor for name, tensor in target.items() if name.startswith(prefix)}
    if set(names) != {IN, OUT} or not {"in_proj.weight", "out_proj.weight"} <= set(mixer):
        raise ValueError(
            f"block {layer} has only a part of what a mixer and an attention need, {', '.join(mixer)}: exclude whole"
            " mixers, blocks.3.mixer.*, and give the teacher's output projections"
        )
    theirs = [name for leaf in (IN, OUT) for name in names[leaf]]
    for name in theirs:
        check_source(name, source)
        if not bool(torch.isfinite(read(source, name)).all()):
            raise ValueError(f"teacher tensor {name} has non-finite numbers: attention cannot be read from it")
    for name, tensor in mixer.items():
        check_target(prefix + name, tensor)
    _check_shapes(init, layer, theirs, source, mixer, kept)
    reads = Input("in_proj.bias" in mixer, None if "in_proj.bias" in mixer else constant_direction(layer, norms))
    check, build, made = _builder(prefix, mixer)
    check(init, shape_of(source, theirs[-1])[1] // init.heads, mixer)

    def tensors() -> dict[str, Tensor]:
        if layer not in slot:
            slot.clear()  # the numbers of one layer at a time
            slot[layer] = build(init, read_circuit(init, theirs, source, kept, reads.has_constant), mixer, reads)
        return slot[layer]

    gate = "" if reads.has_constant else ", gate and biases as initialised"
    origin = theirs[0].removesuffix(".weight")
    return [
        Write(
            prefix + name,
            origin,
            partial(lambda leaf: iter([tensors()[leaf]]), name),
            tuple(mixer[name].shape),
            (None,) * mixer[name].dim(),
            False,
            mixer[name].numel(),
            "linear attention" + (gate if name == "in_proj.weight" else ""),
        )
        for name in made
    ]


def _check_shapes(
    init: AttentionInit,
    layer: int,
    names: list[str],
    source: Mapping[str, Tensor],
    mixer: Mapping[str, Tensor],
    kept: tuple[int, ...] | None,
) -> None:
    rows, width = sum(shape_of(source, name)[0] for name in names[:-1]), shape_of(source, names[0])[1]
    heads = init.heads + 2 * (init.kv_heads or init.heads)
    out = shape_of(source, names[-1])
    if rows % heads or rows // heads * init.heads != out[1]:
        raise ValueError(
            f"teacher layer of {names[0]} has {rows} query, key and value rows and {out[1]} inputs to its output"
            f" projection: that is not {init.heads} heads with {init.kv_heads or init.heads} key heads"
        )
    ours, stays = mixer["in_proj.weight"].shape[1], width if kept is None else len(kept)
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
