"""A Hugging Face ViT into Vim by transformers' Trainer: `into_vim(teacher, student, data, arguments).train()`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from transmamba import TransMambaLoss, models, subclone, transfer
from transmamba.distill import DirectionBridge, FrozenTeacher, MultiDirectionalDistill, Tokens


class Transfer(nn.Module):
    """Student and calibrators; the teacher stands beside them."""

    def __init__(self, student: models.Vim, teacher: Any, image: Tensor, pad: Any) -> None:
        super().__init__()
        self.student, self.teacher = student, FrozenTeacher(teacher.vit)
        self.bridge = DirectionBridge(student.forward_features(image, directions=True), self.target(image), pad=pad)
        self.distill, self.total = MultiDirectionalDistill(order="raster"), TransMambaLoss.v1(0.9)

    def target(self, images: Tensor) -> Tokens:
        """The teacher's tokens and their layout: a class token in front, where Vim has its own in the middle."""
        return Tokens(self.teacher(images).last_hidden_state, self.student.grid, (0,))

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits, as Trainer asks for them."""
        features = self.student.forward_features(pixel_values, directions=True)
        logits, sides = self.student.forward_head(features), self.bridge(features, self.target(pixel_values))
        return {"loss": self.total(F.cross_entropy(logits, labels), self.distill(*sides)), "logits": logits}


def into_vim(teacher: nn.Module, student: models.Vim, data: Any, arguments: TrainingArguments) -> Trainer:
    """Inherit the weights of a `ViTForImageClassification`, and return the trainer of the rest."""
    report, lr = subclone(teacher, student, transfer.magnitude_importance), arguments.learning_rate
    module = Transfer(student, teacher, data[0]["pixel_values"][None], report.pads(student))
    groups = [*transfer.param_groups(student, report.inherited, lr=lr), {"params": module.bridge.parameters()}]
    return Trainer(module, arguments, train_dataset=data, optimizers=(torch.optim.AdamW(groups, lr=lr), None))
