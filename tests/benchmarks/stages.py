"""Gradient steps on the mixers of a converted language model."""

from functools import partial

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
        torch.clear_autocast_cache()  # it keeps the rounded weights of before the step, as long as one autocast lasts


def divergence(teacher, student, batch, every=1):
    """Return the end-to-end loss; of every `every`-th token, because the head takes half of the time."""
    with torch.no_grad():
        theirs = teacher.forward_features(batch).last[:, every - 1 :: every]
    ours = student.forward_features(batch).last[:, every - 1 :: every]
    return HiddenLogitsDistill()(ours, student.head.weight, theirs, teacher.head.weight)


def forced(teacher, student, layers, batch):
    """Return the sum of the errors of all new mixers, each on the teacher's own input."""
    (pairs,) = transfer.mixer_pairs(teacher, [batch], layers)
    return sum(pair.loss(student.blocks[layer].mixer) for layer, pair in pairs.items())


def layer_steps(teacher, student, layers, batches, steps, rate, **fit):
    """Solve, train and solve each new mixer on the student's own stream, from the bottom to the top.

    The teacher runs once for all of it; each mixer goes round all batches for as many steps.
    """
    run = transfer.LayerFit(teacher, student, batches)
    for layer in range(max(layers) + 1):
        if layer in layers:
            run.solve(**fit)
            block, pairs = student.blocks[layer], list(run.pairs())
            rounds = [pairs[step % len(pairs)] for step in range(steps)]
            gradient_steps(student, [layer], rounds, partial(own_error, block), rate)
            block.requires_grad_(False)
            run.solve(**fit)
        run.advance(measure=False)


def own_error(block, pair):
    """Return a mixer's error on the student's stream, relative to its target; a text's first token is left out."""
    place, target = pair
    ours = block.mixer(block.norm1(place.tokens), *place.arguments, **place.options)
    return (ours - target)[:, 1:].square().sum() / target[:, 1:].square().sum()
