"""DeiT into VMamba in a plain loop: average of the weights, bfloat16, gradient accumulation, exact resume."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from transmamba import TransMambaLoss, models, subclone, transfer
from transmamba.distill import DirectionBridge, FrozenTeacher, MultiDirectionalDistill

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


class Transfer(nn.Module):
    """Student and calibrators; the teacher stands beside them."""

    def __init__(self, student: models.VMamba, teacher: models.ViT, image: Tensor, pad: Any) -> None:
        super().__init__()
        self.student, self.teacher = student, FrozenTeacher(teacher, "forward_features")
        self.bridge = DirectionBridge(student.forward_features(image, directions=True), self.teacher(image), pad=pad)
        self.distill, self.total = MultiDirectionalDistill(order="raster", reduction="mean"), TransMambaLoss.v1(0.9)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss; every layer in natural order on the teacher's grid."""
        features = self.student.forward_features(images, directions=True)
        sides = self.bridge(features, self.teacher(images))
        task = F.cross_entropy(self.student.forward_head(features), labels)
        return self.total(task, self.distill(sides.student, sides.teacher))


def train(teacher: models.ViT, student: models.VMamba, batches: Batches, steps: int, file: Path) -> nn.Module:
    """Train for `steps` steps of the micro-batches `batches(step)`, going on from `file`; return the average."""
    report = subclone(teacher, student, transfer.magnitude_importance)
    module = Transfer(student, teacher, next(iter(batches(0)))[0][:1], report.pads(student))
    groups = [*transfer.param_groups(student, report.inherited, lr=5e-4), {"params": module.bridge.parameters()}]
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    parts = {"module": module, "average": average, "optimizer": torch.optim.AdamW(groups, lr=5e-4)}
    saved = torch.load(file) if file.exists() else {"steps": 0}
    for name in parts.keys() & saved.keys():
        parts[name].load_state_dict(saved[name])
    for step in range(saved["steps"], steps):
        torch.manual_seed(step)
        for images, labels in (micro := list(batches(step))):
            with torch.autocast(images.device.type, torch.bfloat16):
                loss = module(images, labels) / len(micro)
            loss.backward()
        parts["optimizer"].step(), parts["optimizer"].zero_grad(), average.update_parameters(module)
        torch.save({"steps": step + 1} | {name: part.state_dict() for name, part in parts.items()}, file)
    return average.module.student
