"""Negatives from two gloo processes: loss and gradients equal those of one process on the joined batch.

The file runs itself as a script: the processes that torch spawns find their function in it by its path.
"""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import transmamba
from transmamba.distill import ContrastiveLoss, ends_process, gather_batch
from transmamba.models import LogitScale, SequentialHead, TemporalMamba

# texts and videos of each process
SHARES = {"even": ((4, 3), (4, 3)), "uneven": ((5, 4), (3, 1)), "one empty": ((7, 5), (0, 0))}
WAYS = ("features", "rows")


class Retriever(nn.Module):
    """Two linear encoders, a head with weights of its own, a learnt temperature."""

    def __init__(self):
        super().__init__()
        self.text, self.video = nn.Linear(3, 6), nn.Linear(5, 6)
        self.head, self.scale = SequentialHead(6, TemporalMamba(6, depth=1)), LogitScale()
        nn.init.normal_(self.head.proj.weight, std=0.3)

    def forward(self, texts, videos, mask, way, group):
        text, frames = self.text(texts), self.video(videos)
        frames, mask = gather_batch(frames, group), gather_batch(mask, group)
        if way == "features":
            return self.scale(self.head(gather_batch(text, group), frames, mask))
        return gather_batch(self.scale(self.head(text, frames, mask)), group)


def joined_batch(texts, videos):
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(texts, 3, generator=generator)
    frames = torch.randn(videos, 4, 5, generator=generator)
    mask = torch.arange(4) < 1 + torch.arange(videos)[:, None]
    # captions of one video may lie on two processes
    return text, torch.arange(texts) % videos, frames, torch.arange(videos), mask


def retrieve(model, batch, way, group=None):
    texts, text_video, videos, video, mask = batch
    similarity = model(texts, videos, mask, way, group)
    positive = gather_batch(text_video, group)[:, None] == gather_batch(video, group)[None]
    loss = ContrastiveLoss()(similarity, positive)
    loss.backward()
    return loss.detach()


def share(batch, rank, shares):
    sizes = [shares[rank][kind] for kind in (0, 0, 1, 1, 1)]
    starts = [sum(other[kind] for other in shares[:rank]) for kind in (0, 0, 1, 1, 1)]
    return [part[start : start + size] for part, start, size in zip(batch, starts, sizes, strict=True)]


def totals(shares):
    return (sum(texts for texts, _ in shares), sum(videos for _, videos in shares))


def build():
    torch.manual_seed(0)
    return Retriever()


@ends_process
def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=180)
    )
    results = {}
    for case, shares in SHARES.items():
        for way in WAYS:
            model = DistributedDataParallel(build())
            loss = retrieve(model, share(joined_batch(*totals(shares)), rank, shares), way, dist.group.WORLD)
            results[case, way] = (loss, [parameter.grad.clone() for parameter in model.parameters()])
    try:
        gather_batch(torch.zeros(2, 3 + rank), dist.group.WORLD)
    except ValueError as error:
        results["refused"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    path = os.pathsep.join([str(Path(transmamba.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, str(folder)]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", SHARES)
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one_on_the_joined_batch(results, case, way):
    model = build()
    expected = retrieve(model, joined_batch(*totals(SHARES[case])), way)
    for rank in range(2):
        loss, gradients = results[rank][case, way]
        torch.testing.assert_close(loss, expected)
        for got, (name, parameter) in zip(gradients, model.named_parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_samples_of_unequal_shape_are_refused_by_all(results):
    message = r"process 1 has samples of shape (4,), process 0 (3,): pad to one length"
    assert [result["refused"] for result in results] == [message, message]


if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[1],), nprocs=2)
