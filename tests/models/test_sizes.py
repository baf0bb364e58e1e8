"""Parameters and operations of every published size, counted on the meta device.

Operations are multiply-adds of matrix products and convolutions, 9 B L E N of a scan, and one per token and channel for
a direct path; Vim's table also has one per token and channel for the gate of each direction.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from transmamba import models
from transmamba.ops import FLOP_FORMULAS

# millions of parameters, billions of operations at 224 x 224
SIZES = {
    "vim_tiny": (7.15, 1.82),
    "vim_small": (25.80, 5.91),
    "vim_base": (97.60, 20.89),
    "vim_tiny_stride8": (7.25, 6.75),
    "vim_small_stride8": (26.00, 21.91),
    "video_mamba_tiny": (7.15, 1.82),
    "video_mamba_small": (25.80, 5.91),
    "video_mamba_middle": (74.22, 16.33),
    "video_mamba_base": (97.60, 20.89),
    "plain_mamba_l1": (7.55, 3.01),
    "plain_mamba_l2": (26.15, 8.07),
    "plain_mamba_l3": (50.96, 14.43),
    "vmamba_v0_tiny": (22.89, 5.60),
    "vmamba_v0_small": (44.42, 11.18),
    "vmamba_v0_base": (76.25, 17.95),
    "vmamba_tiny_s2l5": (30.71, 4.82),
    "vmamba_small_s2l15": (50.15, 8.67),
    "vmamba_base_s2l15": (88.56, 15.29),
    "vmamba_tiny_s1l8": (30.25, 4.88),
    "vmamba_small_s1l20": (49.01, 8.57),
    "vmamba_base_s1l20": (86.61, 15.16),
}
# clips of 8 frames, 400 classes
VIDEO_SIZES = {
    "video_mamba_tiny": (7.03, 14.5),
    "video_mamba_small": (25.6, 47.1),
    "video_mamba_middle": (73.9, 130.0),
}


def measure(name, shape, **options):
    """Count millions of parameters and billions of operations."""
    with torch.device("meta"):
        model, x = getattr(models, name)(**options).eval(), torch.empty(1, *shape)
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter, torch.no_grad():
        model(x)
    counts = counter.get_flop_counts()["Global"]
    scan = counts[torch.ops.transmamba.scan_forward]
    operations = (sum(counts.values()) - scan) / 2 + scan
    if isinstance(model, (models.Vim, models.VideoMamba)):
        patches = (model.pos_embed.shape[1] - 1) * options.get("num_frames", 1)
        operations += 2 * (patches + 1) * model.head.in_features * 2 * len(model.blocks)
    return sum(p.numel() for p in model.parameters()) / 1e6, operations / 1e9


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_operations_are_the_published_ones(name):
    parameters, operations = measure(name, (3, 224, 224))
    assert parameters == pytest.approx(SIZES[name][0], abs=0.0051)
    assert operations == pytest.approx(SIZES[name][1], abs=0.0051)


@pytest.mark.parametrize("name", VIDEO_SIZES)
def test_clips_cost_what_is_published(name):
    parameters, operations = measure(name, (3, 8, 224, 224), num_frames=8, num_classes=400)
    assert parameters == pytest.approx(VIDEO_SIZES[name][0], abs=0.051)
    assert operations == pytest.approx(VIDEO_SIZES[name][1], abs=0.051)


@pytest.mark.parametrize(
    ("name", "millions"), [("plain_mamba_tiny", 4.17), ("plain_mamba_small", 13.79), ("plain_mamba_base", 49.60)]
)
def test_the_students_of_the_paper_have_its_sizes(name, millions):
    with torch.device("meta"):
        model = getattr(models, name)(num_classes=100)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.0051)


def test_operations_of_a_backward_are_twice_those_of_the_forward():
    model = models.VisionMamba(8, 4, dim=12, depth=2, num_classes=5)
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    forward = counts[torch.ops.transmamba.scan_forward]
    assert forward == 2 * 2 * 2 * 4 * 24 * (9 * 16 + 1)  # blocks, images, directions, tokens, channels
    assert counts[torch.ops.transmamba.scan_backward] == 2 * forward
