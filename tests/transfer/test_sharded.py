"""Sharded parameters are refused, on either side, before anything is written.

The file runs itself as a script: threads of a process group outlive it, and none shall outlive it in pytest's process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from transmamba.distill import ends_process
from transmamba.transfer import first_importance, subclone

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")


def test_sharded_parameters_are_refused(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, str(tmp_path)]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


@ends_process
def main(folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    plain = {"weight": torch.zeros(4, 3)}
    sharded = {"weight": distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])}
    plan = {"weight": ("weight", "hidden residual")}
    for teacher, student, side in ((sharded, plain, "teacher"), (plain, sharded, "student")):
        with pytest.raises(TypeError, match=rf"{side} tensor weight is sharded \(DTensor\): .* before sharding"):
            subclone(teacher, student, first_importance, plan=plan)
    assert plain["weight"].eq(0).all()
    assert sharded["weight"].full_tensor().eq(1).all()


if __name__ == "__main__":
    main(sys.argv[1])
