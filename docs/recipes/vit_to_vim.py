"""A Hugging Face ViT into Vim by transformers' Trainer: `into_vim(teacher, student, data, arguments).train()`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from transmamba import TransMambaLoss, models, subclone, transfer
from transmamba.distill import FrozenTeacher, LayerCalibrators, MultiDirectionalDistill, drop_tokens
from transmamba.ops import permute_tokens


class Transfer(nn.Module):
    """Student and calibrators; the teacher stands beside them."""

    def __init__(self, student: models.Vim, teacher: Any, pad: Any) -> None:
        super().__init__()
        self.student, self.teacher = student, FrozenTeacher(teacher.vit)
        widths = [student.norm.weight.numel()] * len(student.blocks), teacher.config.hidden_size
        self.bridge = nn.ModuleList(LayerCalibrators(*widths, pad=pad) for _ in range(2))
        self.distill, self.total = MultiDirectionalDistill(order="raster"), TransMambaLoss.v1(0.9)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits, as Trainer asks for them."""
        features, scans = self.student.forward_features(pixel_values, directions=True), {}
        for name, order, layers, bridge in zip("fb", features.orders, features.directions, self.bridge, strict=True):
            # in natural order, and without the class token, which Vim has in the middle and ViT in front
            scans[name] = bridge([drop_tokens(permute_tokens(x, order.undo()), features.extra) for x in layers])
        logits = self.student.head(features.last[:, features.extra[0]])
        distill = self.distill(scans, self.teacher(pixel_values).last_hidden_state[:, 1:])
        return {"loss": self.total(F.cross_entropy(logits, labels), distill), "logits": logits}


def into_vim(teacher: nn.Module, student: models.Vim, data: Any, arguments: TrainingArguments) -> Trainer:
    """Inherit the weights of a `ViTForImageClassification`, and return the trainer of the rest."""
    report = subclone(teacher, student, transfer.magnitude_importance)
    module, lr = Transfer(student, teacher, report.kept.get("residual", "right")), arguments.learning_rate
    groups = [*transfer.param_groups(student, report.inherited, lr=lr), {"params": module.bridge.parameters()}]
    return Trainer(module, arguments, train_dataset=data, optimizers=(torch.optim.AdamW(groups, lr=lr), None))
