"""A small image teacher, and pictures for a pyramid that follows it."""

import torch

from transmamba.models import ViT


def small_vit(depth):
    """Build a teacher of 4 x 4 patches whose biases and positions are not zero either."""
    torch.manual_seed(0)
    model = ViT(32, 8, dim=24, depth=depth, heads=2, num_classes=3)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def small_images(count):
    """Draw batches of eight."""
    return list(torch.randn(count, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1)).unbind())
