"""Loss and gradient of two gloo processes equal those of one process on the joined batch.

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
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import transmamba
from transmamba.distill import AdaptiveLayerDistill, BidirectionalDistill, LayerCalibrators, ends_process

SHARES = {"even": (3, 3), "uneven": (4, 1), "one empty": (5, 0)}
LOSSES = {
    "batch": {},
    "sample": {"weight_scope": "sample"},
    "through weights": {"detach_weights": False, "weighting": "neg_cos"},
    "flatten": {"similarity": "flatten", "scale": "mean_N"},
}
CASES = [
    *(("ddp", case, name) for case in SHARES for name in LOSSES),
    *(("fsdp", case, "batch") for case in SHARES),
]


class Student(nn.Module):
    """Two layers per direction on top of their calibrators."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.calibrators = LayerCalibrators([3] * 4, 5)
        for parameter in self.calibrators.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x):
        return self.calibrators([layer(x) for layer in self.layers])


def joined_batch(samples):
    generator = torch.Generator().manual_seed(1)
    x, teacher = (torch.randn(samples, 7, width, generator=generator) for width in (3, 5))
    mask = torch.arange(7) < 3 + torch.arange(samples)[:, None]
    return x, teacher, mask


def student():
    torch.manual_seed(0)
    return Student()


def distil(model, batch, process_group=None, **options):
    x, teacher, mask = batch
    layers = model(x)
    inner = AdaptiveLayerDistill(process_group=process_group, **options)
    loss = BidirectionalDistill(inner)(layers[:2], layers[2:], teacher, mask)
    loss.backward()
    return loss.detach()


def share(batch, rank, shares):
    start = sum(shares[:rank])
    return [part[start : start + shares[rank]] for part in batch]


def wrapped(kind):
    model = student()
    return DistributedDataParallel(model) if kind == "ddp" else fully_shard(model)


def whole(gradient):
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


@ends_process
def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=180)
    )
    results = {}
    for kind, case, name in CASES:
        model, shares = wrapped(kind), SHARES[case]
        loss = distil(model, share(joined_batch(sum(shares)), rank, shares), dist.group.WORLD, **LOSSES[name])
        results[kind, case, name] = (loss, [whole(parameter.grad).clone() for parameter in model.parameters()])
    loss = AdaptiveLayerDistill(process_group=dist.group.WORLD)
    x, teacher, mask = share(joined_batch(5), rank, (4, 1))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results["compiled"] = (compiled([teacher + 1], teacher, mask), loss([teacher + 1], teacher, mask))
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    path = os.pathsep.join([str(Path(transmamba.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, str(folder)]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("kind", "case", "name"), CASES)
def test_two_processes_equal_one_on_the_joined_batch(results, kind, case, name):
    model = student()
    expected = distil(model, joined_batch(sum(SHARES[case])), **LOSSES[name])
    for rank in range(2):
        loss, gradients = results[rank][kind, case, name]
        torch.testing.assert_close(loss, expected)
        for got, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, atol=1e-6, rtol=1e-4)


def test_without_a_group_uneven_batches_differ():
    model = student()
    expected = distil(model, joined_batch(5))
    losses = [distil(model, share(joined_batch(5), rank, (4, 1))) for rank in range(2)]
    assert abs(sum(losses) / 2 - expected) > 1e-4


def test_reduction_compiles_to_one_graph(results):
    for rank in range(2):
        compiled, eager = results[rank]["compiled"]
        torch.testing.assert_close(compiled, eager)


if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[1],), nprocs=2)
