"""Ways to make a Mamba of DINOv2: closed form, gradient steps, and students of half the width."""

import time
from functools import partial

import torch

from tests.benchmarks.vision_data import PATCH, normalised
from transmamba import subclone, transfer
from transmamba.distill import (
    AdaptiveLayerDistill,
    LastFeatureDistill,
    LayerwiseDistill,
    MultiDirectionalDistill,
    TokenRelationDistill,
    drop_tokens,
    natural_shares,
)
from transmamba.models import SNAKES, PlainMamba, Vim, VisionMamba, replace_mixers, vmamba_v2
from transmamba.nn import Mamba2Mixer, Mamba3Mixer, MambaMixer

LAYERS, BATCH = range(12), 32
ORDERS = {1: ("forward",), 2: ("forward", "backward"), 4: SNAKES}
MIXERS = {
    "mamba": MambaMixer,
    "mamba2": partial(Mamba2Mixer, d_state=32, head_dim=32),
    "mamba3": partial(Mamba3Mixer, d_state=32, head_dim=32),
}
WIDTH = 192
# builds a student of a size, and options of its closed form; `fit_layers` matches tokens and depths by itself
FAMILIES = {
    "visionmamba": (lambda side: VisionMamba(side, PATCH, dim=WIDTH, depth=6, num_classes=4), {"mlp": True}),
    "vim": (lambda side: Vim(side, PATCH, dim=WIDTH, depth=12, num_classes=4), {}),
    "vim, deep": (lambda side: Vim(side, PATCH, dim=WIDTH, depth=24, num_classes=4), {}),
    "plainmamba": (lambda side: PlainMamba(side, PATCH, dim=WIDTH, depth=12, num_classes=4), {}),
    "vmamba": (lambda side: vmamba_v2((48, 96, 192, 384), (2, 2, 8, 2), num_classes=4), {"mlp": True, "ridge": 1e-2}),
}


def new_student(bench, directions=2, mixer="mamba", seed=0, token="ends", **options):
    """Return the teacher with mixers of random start."""
    torch.manual_seed(seed)
    bias = {} if mixer == "mamba3" else {"bias": True}  # which has none
    build = partial(MIXERS[mixer], directions=directions, **bias, **options)
    scans = {"orders": ORDERS[directions], "prefix_scan": token}
    return replace_mixers(bench.teacher, dict.fromkeys(LAYERS, build), **scans).eval()


def solve(bench, student, count, source="photographs", **fit):
    """Solve all readouts."""
    transfer.fit_layers(bench.teacher, student, bench.batches(count, source), progress=False, **fit)
    return student


def deleted(bench):
    """Return the teacher without attention."""
    student = new_student(bench, 1)
    for block in student.blocks:
        block.mixer.out_proj.weight.data.zero_()
        block.mixer.out_proj.bias.data.zero_()
    return student


def attention_start(bench, count=0):
    """Return mixers of the attention's weights, with their readouts solved if there are pictures."""
    student = new_student(bench)
    start = transfer.AttentionInit(heads=6, length=bench.teacher.pos_embed.shape[1])
    subclone(bench.teacher, student, transfer.magnitude_importance, ssm_from=start)
    return solve(bench, student, count) if count else student


def solved(bench, count=500, source="photographs", fit=None, **student):
    """Return a student of the closed form alone."""
    return solve(bench, new_student(bench, **student), count, source, **(fit or {}))


def again(bench, student, count=500, source="photographs", **fit):
    """Solve the readouts once more."""
    solve(bench, student, count, source, **fit)


def random_batch(images, generator):
    """Return pictures, mirrored in both ways by chance."""
    x = normalised(images[torch.randint(len(images), (BATCH,), generator=generator)])
    for axis in (-1, -2):
        x = x.flip(axis) if torch.rand((), generator=generator) < 0.5 else x
    return x


def descend(parameters, loss, seconds, rate, warm=0.1):
    """Take steps of Adam for so many CPU seconds, in bfloat16; return their number."""
    parameters, begin, steps, share = list(parameters), time.process_time(), 0, 0.0
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, share / warm + 0.01, (1 - share) / (1 - warm) + 0.01)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        steps, share = steps + 1, (time.process_time() - begin) / seconds
    return steps


def forced(bench, student, seconds, source="photographs", rate=1e-3, seed=0):
    """Fit each mixer to the outputs of the teacher's attention on the teacher's stream."""
    images, generator = getattr(bench, source), torch.Generator().manual_seed(seed)
    mixers = [block.mixer for block in student.blocks]
    teacher = replace_mixers(bench.teacher, {}, orders=student.order_specs, prefix_scan=student.prefix_scan)

    def loss():
        (pairs,) = transfer.mixer_pairs(teacher, [random_batch(images, generator)])
        return sum(pair.loss(mixers[layer]) for layer, pair in pairs.items()) / len(mixers)

    return descend((p for mixer in mixers for p in mixer.parameters()), loss, seconds, rate)


def last_mse(student, teacher):
    """Compare the tokens after the last norm."""
    return LastFeatureDistill("mse")(student.last, teacher.last)


def last_cosine(student, teacher):
    """Compare their directions."""
    return LastFeatureDistill()(student.last, teacher.last)


def adaptive(student, teacher):
    """Compare the streams after all blocks with the teacher's last feature, as the paper does."""
    return AdaptiveLayerDistill()(student.layers, teacher.last)


def relations(student, teacher):
    """Compare the similarities between tokens, layer by layer."""
    return TokenRelationDistill()(student.layers, teacher.layers)


def by_direction(student, teacher):
    """Compare each direction's share of every mixer output with the last patches: Eqs. 6-10 for two directions."""
    sides = {str(k): shares for k, shares in enumerate(natural_shares(student))}
    return MultiDirectionalDistill(order="raster")(sides, drop_tokens(teacher.last, teacher.extra))


def layers_mse(student, teacher):
    """Compare the streams after all blocks, and the tokens after the last norm."""
    return LayerwiseDistill("mse")(student.layers, teacher.layers) + last_mse(student, teacher)


def end_to_end(bench, student, seconds, compare, source="photographs", rate=3e-4, seed=1):
    """Train the whole student on features of the teacher."""
    images, generator = getattr(bench, source), torch.Generator().manual_seed(seed)
    student.train()

    def loss():
        x = random_batch(images, generator)
        with torch.no_grad():
            theirs = bench.teacher.forward_features(x)
        return compare(student.forward_features(x, directions=compare is by_direction), theirs)

    steps = descend(student.parameters(), loss, seconds, rate)
    student.eval()
    return steps


def smaller(bench, basis, count=0, family="visionmamba", seed=0, fit=True):
    """Return a student whose stream is a projection of the teacher's; with pictures its readouts are solved.

    Args:
        bench: the teacher and its pictures.
        basis: "axes" or "neurons" of the teacher's stream; "random" leaves the student as it is.
        count: pictures for the axes and for the closed form.
        family: one of FAMILIES.
        seed: of the student.
        fit: solve the readouts.
    """
    torch.manual_seed(seed)
    build, options = FAMILIES[family]
    student = build(PATCH * bench.teacher.grid[0]).eval()
    if basis == "random":
        return student
    exclude = [*transfer.SSM_PARAMETERS, "head.*"]
    report = subclone(bench.teacher, student, transfer.magnitude_importance, layer_map="uniform", exclude=exclude)
    if not count:
        return student
    if family == "vmamba":
        return in_stages(bench, student, report.kept if basis == "neurons" else None, count, **options)
    if basis == "axes":
        projection = transfer.principal_axes(bench.teacher, bench.batches(count), WIDTH)
        transfer.project_start(bench.teacher, student, projection)
    else:
        projection = torch.eye(384)[list(report.kept["residual"])]
    return solve(bench, student, count, projection=projection, **options) if fit else student


def in_stages(bench, student, kept, count, **fit):
    """Solve the readouts of a pyramid, in the coordinates of its neurons if these are given, else on axes."""
    stages = range(len(student.stages))
    projections = kept and [torch.eye(384)[list(kept.get(f"residual.{stage}", range(384)))] for stage in stages]
    transfer.fit_stages(bench.teacher, student, bench.batches(count), projections=projections, progress=False, **fit)
    return student


def chained(bench, start, *stages):
    """Make a student and do one stage after the other; return it, and steps and CPU seconds of each stage."""
    log, student = [], None
    for stage in (start, *stages):
        begin = time.process_time()
        found = stage(bench) if student is None else stage(bench, student)
        log.append([found if isinstance(found, int) else None, round(time.process_time() - begin, 1)])
        student = found if student is None else student
    return student, log
