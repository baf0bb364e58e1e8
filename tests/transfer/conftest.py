"""A teacher whose function is known when neurons go: a residual MLP without normalisation."""

import pytest
import torch
from torch import nn

PLAN = {
    "embed.weight": ("embed.weight", "residual ."),
    "blocks.{i}.fc1.weight": ("blocks.{i}.fc1.weight", "hidden.{i} residual"),
    "blocks.{i}.fc1.bias": ("blocks.{i}.fc1.bias", "hidden.{i}"),
    "blocks.{i}.fc2.weight": ("blocks.{i}.fc2.weight", "residual hidden.{i}"),
    "head.weight": ("head.weight", "class residual"),
    "head.bias": ("head.bias", "class"),
}


class Stream(nn.Module):
    def __init__(self, dim, hidden, depth=2):
        super().__init__()
        self.embed = nn.Linear(3, dim, bias=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim, bias=False)})
            for _ in range(depth)
        )
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["fc2"](block["fc1"](x).relu())
        return self.head(x)


@pytest.fixture
def plan():
    return dict(PLAN)


@pytest.fixture
def stream():
    return Stream


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
