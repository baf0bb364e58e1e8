"""The code in docs/kd_conventions.md and docs/scaling.md runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import transmamba

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_conversion_table_holds():
    """deit 116; transformers 12299."""
    (code,) = blocks("kd_conventions.md")
    exec(compile(code, "kd_conventions.md", "exec"), {})


@pytest.fixture
def shards():
    pytest.importorskip("safetensors")
    namespace = {}
    exec(compile(blocks("scaling.md")[1], "scaling.md", "exec"), namespace)
    return namespace["write_shards"], namespace["read_shards"]


def test_shards_come_back_whole_and_in_order(shards, tmp_path):
    write, read = shards
    features = torch.randn(11, 5, 3)
    batches = [(torch.arange(start, min(start + 4, 11)), features[start : start + 4]) for start in range(0, 11, 4)]
    assert write(batches, tmp_path, per_shard=3) == 4
    got = list(read(tmp_path, batch=2))
    assert torch.equal(torch.cat([ids for ids, _ in got]), torch.arange(11))
    assert torch.equal(torch.cat([x for _, x in got]), features.bfloat16())


def test_processes_share_the_shards(shards, tmp_path):
    write, read = shards
    write([(torch.arange(11), torch.randn(11, 5, 3))], tmp_path, per_shard=3)
    seen = [{int(n) for ids, _ in read(tmp_path, 2, rank, 2) for n in ids} for rank in range(2)]
    assert seen[0] | seen[1] == set(range(11))
    assert not seen[0] & seen[1]


def test_loop_runs_on_two_processes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(blocks("scaling.md")[0])
    path = os.pathsep.join([str(Path(transmamba.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert re.search(r"loss \d+\.\d+", run.stdout)
