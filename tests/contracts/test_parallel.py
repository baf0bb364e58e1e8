"""Every backbone on two gloo processes, replicated and sharded, gives the loss and gradients of one process.

The file runs itself as a module: `python -m tests.contracts.test_parallel` starts the two processes.
"""

import copy
import faulthandler
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from transmamba.distill import ends_process

ROOT = Path(__file__).parents[2]


def test_two_processes_give_the_loss_and_gradients_of_one():
    done = subprocess.run(
        [sys.executable, "-m", "tests.contracts.test_parallel"], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def step(model, x):
    loss = model(x).square().mean()
    loss.backward()
    return loss.detach()


def sharded(model):
    mesh = init_device_mesh("cpu", (2,))
    for module in list(model.modules()):
        if hasattr(module, "norm1"):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@ends_process
def work(rank: int, store: str) -> None:
    """Run as one of the two processes, on half of the batch."""
    from tests.contracts.backbones import BACKBONES, build

    faulthandler.dump_traceback_later(200, exit=True)  # if they wait for each other, say where
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name in BACKBONES:
        torch.manual_seed(0)
        model, x = build(name)
        alone = copy.deepcopy(model)
        expected = step(alone, x)
        for wrap in (DistributedDataParallel, sharded):
            parallel = wrap(copy.deepcopy(model))
            loss = step(parallel, x[rank : rank + 1])
            dist.all_reduce(loss)
            torch.testing.assert_close(loss / 2, expected)
            for p, q in zip(parallel.parameters(), alone.parameters(), strict=True):
                got = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
                torch.testing.assert_close(
                    got, q.grad, atol=1e-5, rtol=1e-4, msg=lambda text, n=name, w=wrap: f"{n} {w.__name__}: {text}"
                )
        with torch.device("meta"):
            empty = BACKBONES[name].build()
        started = sharded(empty).to_empty(device="cpu")
        started.reset_parameters()
        assert all(p.full_tensor().isfinite().all() for p in started.parameters()), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (str(Path(folder) / "store"),), nprocs=2)
