"""The numbers of a Mamba and of a Mamba-2 mixer that start as linear attention."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.transfer.attention_weights import AttentionWeights, MixerInput, Start, expand_heads
from transmamba.transfer.convolutions import identity_convolution

OPEN_GATE = 1.2784645  # silu of it is 1


def check_mamba(init: Start, head_dim: int, mixer: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the inner width has no room for a single pair of value channels."""
    inner, _, state, rank = _mamba_sizes(mixer)
    if rank < 1:
        raise ValueError(
            f"a mixer of {inner} inner channels has no room for 2 x 2 x {state} of queries and keys and a pair of"
            " values: use fewer states or a wider mixer"
        )


def build_mamba(
    init: Start, attention: AttentionWeights, mixer: Mapping[str, Tensor], reads: MixerInput
) -> dict[str, Tensor]:
    """Build all tensors of a Mamba mixer: channel pairs for values, queries and keys, in this order."""
    made = {name: tensor.detach().float().cpu().clone() for name, tensor in mixer.items()}
    inner, directions, state, rank = _mamba_sizes(mixer)
    head_dim = len(attention.q) // init.heads
    k, v = expand_heads(init, attention.k), expand_heads(init, attention.v)
    C, B = low_rank(attention.q.T @ k / (init.heads * math.sqrt(head_dim)), state)
    out, x = low_rank(attention.o @ v, rank)
    rows = torch.cat([x, -x, C, -C, B, -B])
    weight, bias = reads.project(rows)
    made["in_proj.weight"][: len(rows)] = weight
    made["out_proj.weight"].zero_()
    made["out_proj.weight"][:, : 2 * rank] = torch.cat([out, -out]).T
    if reads.bias:
        made["in_proj.bias"].zero_()
        made["in_proj.bias"][: len(rows)] = bias
    _open_gate(made, slice(inner, None), reads)
    pairs = torch.cat([torch.eye(state), -torch.eye(state)], 1)
    for name, tensor in made.items():
        if name.endswith("x_proj.weight"):
            tensor[-2 * state :] = 0.0
            tensor[-state:, 2 * rank : 2 * rank + 2 * state] = pairs
            tensor[-2 * state : -state, 2 * rank + 2 * state : len(rows)] = pairs
    # two directions see every pair of tokens once, so do four in twice as many sums
    return _start_ssm(init, attention, made, 1.0 / init.length if directions == 1 else 2.0 / (directions * init.length))


def check_mamba2(init: Start, head_dim: int, mixer: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the heads of the two do not fit."""
    heads, inner, shared = _mamba2_sizes(mixer)
    groups, channels = init.groups, init.heads * head_dim
    if heads != init.heads or inner != channels or shared not in (channels, groups * head_dim):
        raise ValueError(
            f"mismatched heads: the Mamba-2 mixer has {heads} heads in {inner} channels and {shared} rows of B, the"
            f" teacher {init.heads} heads in {channels} channels and {groups * head_dim} rows of keys; build it with"
            f" HeadSSM({init.heads}, {head_dim}, d_state={head_dim}, groups={groups})"
        )


def build_mamba2(
    init: Start, attention: AttentionWeights, mixer: Mapping[str, Tensor], reads: MixerInput
) -> dict[str, Tensor]:
    """Build all tensors of a Mamba-2 mixer except its norm: Q to C, K to B, V to x, head by head.

    With as many groups as key heads, the queries that share a key are averaged.
    """
    made = {name: tensor.detach().float().cpu().clone() for name, tensor in mixer.items()}
    heads, inner, shared = _mamba2_sizes(mixer)
    B, C, x = attention.k, attention.q, expand_heads(init, attention.v)
    if shared == len(C):
        B = expand_heads(init, B)
    else:
        groups = init.groups
        C = C.unflatten(0, (groups, init.heads // groups, -1)).mean(1).flatten(0, 1)
    weight, bias = reads.project(torch.cat([x, B, C]))
    made["in_proj.weight"][inner:-heads] = weight
    made["in_proj.weight"][-heads:] = 0.0
    made["out_proj.weight"].copy_(attention.o)
    if reads.bias:
        made["in_proj.bias"].zero_()
        made["in_proj.bias"][inner:-heads] = bias
    _open_gate(made, slice(0, inner), reads)
    return _start_ssm(init, attention, made, 1.0 / init.length)


def _mamba_sizes(mixer: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    """Return inner width, directions, states, and the value channels that fit beside queries and keys, all in pairs."""
    rows, width = mixer["in_proj.weight"].shape
    states = [tensor.shape[1] for name, tensor in mixer.items() if name.endswith("A_log")]
    # PlainMamba's mixer scans four ways with one set of parameters and adds a vector for each move to B
    directions = 4 if "direction_B" in mixer else len(states)
    return rows // 2, directions, states[0], min((rows // 2 - 4 * states[0]) // 2, width)


def _mamba2_sizes(mixer: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return heads, inner width and rows of B."""
    heads, inner = len(mixer["ssm.A_log"]), mixer["out_proj.weight"].shape[1]
    return heads, inner, (len(mixer["in_proj.weight"]) - 2 * inner - heads) // 2


def _open_gate(made: dict[str, Tensor], gate: slice, reads: MixerInput) -> None:
    if reads.bias:
        made["in_proj.weight"][gate] = 0.0
        made["in_proj.bias"][gate] = OPEN_GATE
    elif reads.constant is not None:
        made["in_proj.weight"][gate] = OPEN_GATE * reads.constant


def _start_ssm(init: Start, attention: AttentionWeights, made: dict[str, Tensor], step: float) -> dict[str, Tensor]:
    """Set a constant step, hardly any decay, no direct path, and convolutions that pass the current token."""
    for name, tensor in made.items():
        leaf = name.removesuffix(".weight").split(".")[-1]
        if name == "out_proj.bias":
            tensor.copy_(attention.o_bias)
        elif leaf in ("conv1d", "conv2d"):
            tensor.copy_(identity_convolution(tensor))
        elif leaf == "A_log":
            tensor.fill_(math.log(init.decay / (step * init.length)))
        elif leaf == "dt_bias" or name.endswith("dt_proj.bias"):
            tensor.fill_(step_bias(step))
        elif leaf in ("dt_proj", "D", "direction_B") or name.endswith(("conv1d.bias", "conv2d.bias")):
            tensor.zero_()
    return made


def step_bias(step: float) -> float:
    """Return the bias whose softplus is `step`."""
    return math.log(math.expm1(step))


def low_rank(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return left and right with `rank` rows each, left.T @ right nearest to `product`; surplus rows are zero."""
    U, S, Vh = torch.linalg.svd(product.double(), full_matrices=False)
    root = S[:rank].sqrt()[:, None]
    left, right = (root * U.T[:rank]).float(), (root * Vh[:rank]).float()
    missing = rank - len(root)
    return F.pad(left, (0, 0, 0, missing)), F.pad(right, (0, 0, 0, missing))
