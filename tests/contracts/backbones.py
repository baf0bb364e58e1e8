"""The backbones that keep the contract, tiny; one of your own joins by one line of `BACKBONES`.

`python -m tests.contracts.backbones` writes the names and shapes of their parameters again.
"""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from transmamba.models import SNAKES, PlainMamba, VideoMamba, Vim, VisionMamba, ViT, vmamba_v0, vmamba_v2
from transmamba.models.stack import BlockStack
from transmamba.nn import SS2D, Attention, MambaMixer, PlainMambaMixer, TransformerBlock

SNAPSHOT = Path(__file__).parent / "state_keys.json"
CLASSES = 5


class Entry(NamedTuple):
    """A builder of a backbone, and its inputs."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of one input
    any_size: bool = False  # takes inputs of other sizes
    scans: bool = True  # is made of scans
    float32_residual: bool = False  # keeps its stream in float32


def _sizes(**options):
    return {"dim": 12, "depth": 2, "num_classes": CLASSES, **options}


SCANS = {"mixer": partial(MambaMixer, d_state=3, directions=2), "orders": ("forward", "backward")}
HYBRID = SCANS | {"mixer": [SCANS["mixer"], partial(Attention, heads=3)]}
PARTS = {
    "mixer": partial(
        Attention, heads=3, kv_heads=1, qk_norm="head", norm="rms",
        rope={"rope_type": "axial", "rope_theta": 100.0, "grid": [2, 3]},
    ),
    "block": partial(TransformerBlock, hidden_dim=7, gated=True, norm="rms", placement="sandwich"),
    "registers": 2, "position_table": False, "norm_pre": True, "norm": "rms",
}  # fmt: skip
BACKBONES = {
    "vision_mamba": Entry(lambda: VisionMamba((12, 20), 4, d_state=3, **_sizes(orders=SNAKES)), (3, 12, 20)),
    "vim": Entry(lambda: Vim((12, 20), 4, d_state=3, **_sizes()), (3, 12, 20), float32_residual=True),
    "video_mamba": Entry(
        lambda: VideoMamba((8, 12), 4, num_frames=3, **_sizes()), (3, 3, 8, 12), float32_residual=True
    ),
    "video_mamba_image": Entry(lambda: VideoMamba((8, 12), 4, **_sizes()), (3, 8, 12), float32_residual=True),
    "plain_mamba": Entry(lambda: PlainMamba((12, 20), 4, d_state=3, **_sizes(conv_layers=(0,))), (3, 12, 20), True),
    "vmamba_v0": Entry(lambda: vmamba_v0((8, 12), (1, 2), d_state=3, num_classes=CLASSES), (3, 24, 40), True),
    "vmamba_v2": Entry(lambda: vmamba_v2((8, 12), (1, 2), num_classes=CLASSES), (3, 24, 40), True),
    "vit": Entry(lambda: ViT((8, 12), 4, heads=3, **_sizes()), (3, 8, 12), scans=False),
    "vit_hybrid": Entry(lambda: ViT((8, 12), 4, **_sizes(**HYBRID)), (3, 8, 12), scans=False),
    "vit_of_parts": Entry(lambda: ViT((8, 12), 4, **_sizes(**PARTS)), (3, 8, 12), scans=False),
    "vit_of_scans": Entry(lambda: ViT((12, 20), 4, **_sizes(**SCANS)), (3, 12, 20)),
}
SCANNING = [name for name, entry in BACKBONES.items() if entry.scans]


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build the backbone in evaluation mode, its classes apart by more than rounding, and a batch for it."""
    entry = BACKBONES[name]
    model = entry.build().eval()
    with torch.no_grad():
        model.head.weight.normal_()
    return model, torch.randn(2, *entry.shape)


def short(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build the backbone with one block of each kind: tracing one takes seconds, and others like it show no more."""
    model, x = build(name)
    for stack in [module for module in model.modules() if isinstance(module, BlockStack)]:
        first = {repr(block): i for i, block in reversed(list(enumerate(stack)))}
        for i in reversed(range(len(stack))):
            if i not in first.values():
                del stack[i]
    return model, x


# a test of both; the whole model is slow
SHORT_AND_WHOLE = [short, pytest.param(build, marks=pytest.mark.slow, id="whole")]


def mixers(model: nn.Module) -> list[nn.Module]:
    """Return the mixers of all blocks, first to last."""
    return [module.mixer for module in model.modules() if hasattr(module, "mixer")]


def turned(mixer: nn.Module) -> nn.Module:
    """Return the mixer that reads a grid with an odd number of lines as `mixer` reads it after half a turn."""
    mixer = copy.deepcopy(mixer)
    with torch.no_grad():
        if isinstance(mixer, MambaMixer):  # orders come in pairs, one the reverse of the other
            branches = list(mixer.branches)
            mixer.branches = nn.ModuleList(branches[k ^ 1] for k in range(len(branches)))
        elif isinstance(mixer, SS2D):  # rows, columns, and both reversed
            mixer.conv2d.weight.copy_(mixer.conv2d.weight.flip(-1, -2))
            for parameter in mixer.ssm.parameters():
                parameter.copy_(parameter[[2, 3, 0, 1]])
        elif isinstance(mixer, PlainMambaMixer):  # right and left, up and down
            mixer.conv2d.weight.copy_(mixer.conv2d.weight.flip(-1, -2))
            mixer.direction_B.copy_(mixer.direction_B[[0, 2, 1, 4, 3]])
    return mixer


def state_keys() -> dict[str, dict[str, list[int]]]:
    """Name and shape of every tensor in the state dict of every backbone."""
    return {
        name: {key: list(value.shape) for key, value in entry.build().state_dict().items()}
        for name, entry in BACKBONES.items()
    }


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(state_keys(), indent=1) + "\n")
