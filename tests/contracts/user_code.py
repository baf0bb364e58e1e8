"""A user's lines, for mypy and pyright: every line must type-check as it stands."""

from typing import assert_type

import torch
from torch import Tensor, nn

import transmamba as tm
from transmamba.distill import AdaptiveDetails
from transmamba.models import Features
from transmamba.ops import ScanOrder
from transmamba.transfer import SubcloneReport


class Student(nn.Module):
    """A backbone of one's own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = tm.nn.PatchEmbed(dim, patch_size=4)
        self.block = tm.nn.MambaBlock(dim, tm.nn.MambaMixer(dim, directions=2), drop_path=0.1)
        self.calibrate = tm.FeatureCalibrator(dim, 2 * dim, mode="pad_mlp")

    def forward(self, x: Tensor) -> Tensor:
        """Return calibrated tokens."""
        tokens: Tensor = self.embed(x)
        calibrated: Tensor = self.calibrate(self.block(tokens))
        return calibrated


def transfer(teacher: tm.models.ViT, student: tm.models.VisionMamba, images: Tensor) -> Tensor:
    """Take one step."""
    report = tm.subclone(teacher, student, tm.transfer.magnitude_importance, layer_map="early")
    assert_type(report, SubcloneReport)
    share: float = report.fraction
    features = student.forward_features(images, directions=True)
    assert_type(features, Features)
    bridge = tm.distill.LayerCalibrators([192] * len(features.layers), 384)
    loss = tm.AdaptiveLayerDistill(tau=1.0, similarity="token")
    value, details = loss(bridge(features.layers), features.last, return_details=True)
    assert isinstance(details, AdaptiveDetails)
    total: Tensor = tm.TransMambaLoss.v1(alpha=0.5)(value, value)
    return total * share


def scan(u: Tensor) -> Tensor:
    """Run the scan in mamba-ssm's layout, and along an order."""
    order: ScanOrder = tm.ops.scan_order("snake", (2, 3))
    y = tm.selective_scan(u, u, -torch.ones(3, 2), torch.ones(1, 2, 6), torch.ones(1, 2, 6), delta_softplus=True)
    assert isinstance(y, Tensor)
    return tm.ops.permute_tokens(y, order, dim=-1)
