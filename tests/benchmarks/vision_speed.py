"""Speed and memory of attention and of Mamba mixers in DINOv2-S's sizes, by the size of the image."""

import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from transmamba.models import ViT
from transmamba.nn import MambaMixer


def forward_cost(side, mamba):
    """Return seconds of one image, and by how many MB it raises the peak of the process."""
    torch.set_num_threads(1)
    mixer = {"mixer": partial(MambaMixer, directions=2)} if mamba else {}
    model = ViT(side, 14, dim=384, depth=12, heads=6, **mixer).eval()
    image, times = torch.zeros(1, 3, side, side), []
    with torch.no_grad():
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; it would be the parent's
        for _ in range(3):
            begin = time.process_time()
            model(image)
            times.append(time.process_time() - begin)
    return [round(min(times), 3), round((memory("VmHWM") - before) / 1024)]


def memory(kind):
    """Return the resident memory of this process in KiB, or its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


def speed(bench):
    """Time attention and two-direction mixers by the size of the image, each in a process of its own."""
    cases = [(side, mamba) for side in (112, 224, 448, 896) for mamba in (False, True)]
    found = {}
    for side, mamba in cases:
        with get_context("spawn").Pool(1) as pool:
            found[f"{side} {'mamba' if mamba else 'attention'}"] = pool.apply(forward_cost, (side, mamba))
    return {"speed": found}
