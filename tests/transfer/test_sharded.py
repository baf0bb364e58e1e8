"""Sharded parameters are refused, on either side, before anything is written."""

import pytest
import torch
import torch.distributed as dist

from transmamba.transfer import first_importance, subclone

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")


@pytest.fixture
def mesh(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_parameters_are_refused(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    plain = {"weight": torch.zeros(4, 3)}
    sharded = {"weight": distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])}
    plan = {"weight": ("weight", "hidden residual")}
    for teacher, student, side in ((sharded, plain, "teacher"), (plain, sharded, "student")):
        with pytest.raises(TypeError, match=rf"{side} tensor weight is sharded \(DTensor\): .* before sharding"):
            subclone(teacher, student, first_importance, plan=plan)
    assert plain["weight"].eq(0).all()
    assert sharded["weight"].full_tensor().eq(1).all()
