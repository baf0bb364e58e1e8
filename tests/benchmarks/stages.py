"""Gradient steps on the mixers of a converted language model."""

import torch

from transmamba import transfer
from transmamba.distill import HiddenLogitsDistill


def gradient_steps(student, layers, batches, loss, rate):
    """Take a step of AdamW on the new mixers for each batch."""
    mixers = [student.blocks[layer].mixer for layer in layers]
    parameters = [p for mixer in mixers for p in mixer.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


def divergence(teacher, student, batch):
    """Return the end-to-end loss."""
    with torch.no_grad():
        theirs = teacher.forward_features(batch).last
    ours = student.forward_features(batch).last
    return HiddenLogitsDistill()(ours, student.head.weight, theirs, teacher.head.weight)


def forced(teacher, student, layers, batch):
    """Return the sum of the errors of all new mixers, each on the teacher's own input."""
    (pairs,) = transfer.mixer_pairs(teacher, [batch], layers)
    return sum(pair.loss(student.blocks[layer].mixer) for layer, pair in pairs.items())
