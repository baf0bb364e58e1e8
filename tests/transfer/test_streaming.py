"""A teacher in files is read tensor by tensor: measured, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transmamba.transfer import first_importance, open_safetensors, subclone

safetensors = pytest.importorskip("safetensors.torch")

DIM, HIDDEN, LAYERS = 1024, 4096, 6
TENSOR = DIM * HIDDEN * 4
SLACK = 8 * 2**20  # thread stacks, allocator, rows on their way

MEASURE = """
import json, sys, threading, torch
from transmamba.transfer import open_safetensors, subclone
torch.set_num_threads(1)

def resident():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem")) * 1024

def fill(dim, hidden, layers):
    blocks = {}
    for i in range(layers):  # ones, not zeros: memory that nobody wrote is not resident
        blocks[f"blocks.{i}.fc1.weight"] = torch.ones(hidden, dim)
        blocks[f"blocks.{i}.fc2.weight"] = torch.ones(dim, hidden)
    return blocks

teacher_dim, teacher_hidden, dim, hidden, layers = map(int, sys.argv[2:])
plan = {
    "blocks.{i}.fc1.weight": ("blocks.{i}.fc1.weight", "hidden.{i} residual"),
    "blocks.{i}.fc2.weight": ("blocks.{i}.fc2.weight", "residual hidden.{i}"),
}
scores = {f"hidden.{i}": torch.rand(teacher_hidden) for i in range(layers)} | {"residual": torch.rand(teacher_dim)}
teacher, student = open_safetensors(sys.argv[1]), fill(dim, hidden, layers)
subclone(teacher, student, scores, plan=plan)  # code pages that are touched for the first time count as memory too
before, peak, done = resident(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.0005):
        peak = max(peak, resident())

watcher = threading.Thread(target=watch)
watcher.start()
subclone(teacher, student, scores, plan=plan)
done.set()
watcher.join()
print(json.dumps([before, peak, sum(float(tensor.sum()) for tensor in student.values())]))
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    blocks = {}
    for layer in range(LAYERS):
        blocks[f"blocks.{layer}.fc1.weight"] = torch.full((HIDDEN, DIM), 2.0)
        blocks[f"blocks.{layer}.fc2.weight"] = torch.full((DIM, HIDDEN), 3.0)
    safetensors.save_file(blocks, path)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize(("dim", "hidden"), [(DIM, HIDDEN), (DIM // 2, HIDDEN // 4)])
def test_memory_stays_under_the_student_and_one_teacher_tensor(teacher, dim, hidden):
    sizes = map(str, (DIM, HIDDEN, dim, hidden, LAYERS))
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(teacher), *sizes], capture_output=True, text=True, check=True
    )
    before, peak, total = json.loads(result.stdout)
    assert total == LAYERS * dim * hidden * 5
    assert peak - before <= TENSOR + SLACK
    print(f"\nstudent {2 * LAYERS * dim * hidden * 4 / 2**20:.0f} MiB, teacher {2 * LAYERS * TENSOR / 2**20:.0f} MiB,")
    print(f"over the student {(peak - before) / 2**20:.1f} MiB; one teacher tensor {TENSOR / 2**20:.0f} MiB")


def test_nothing_is_read_before_it_is_needed(tmp_path, plan, stream, monkeypatch):
    teacher, reads = stream(5, 6), []
    safetensors.save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    lazy = open_safetensors(tmp_path / "teacher.safetensors")
    original = type(lazy).__getitem__
    monkeypatch.setattr(type(lazy), "__getitem__", lambda self, name: reads.append(name) or original(self, name))
    report = subclone(lazy, stream(5, 6), first_importance, plan=plan, exclude=["head.*"])
    assert set(reads) == report.inherited
    assert len(reads) <= len(report.inherited) + 2  # the check at the border looks at one item


def test_shapes_and_formats_come_from_the_header(tmp_path):
    safetensors.save_file({"a": torch.ones(2, 3), "b": torch.ones(5).bfloat16()}, tmp_path / "t.safetensors")
    lazy = open_safetensors(tmp_path)
    assert (lazy.shape("a"), lazy.dtype("b"), sorted(lazy), len(lazy)) == ((2, 3), "BF16", ["a", "b"], 2)


def test_quantised_files_are_refused_by_their_header(tmp_path, plan, stream):
    state = stream(5, 6).state_dict()
    state["head.weight"] = state["head.weight"].to(torch.float8_e4m3fn)
    safetensors.save_file(state, tmp_path / "t.safetensors")
    with pytest.raises(TypeError, match=r"teacher tensor head\.weight is quantised \(F8_E4M3\)"):
        subclone(open_safetensors(tmp_path), stream(5, 6), first_importance, plan=plan)


def test_files_that_are_missing_or_overlap_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no safetensors file at"):
        open_safetensors(tmp_path)
    for name in ("one", "two"):
        safetensors.save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"a stands both in one\.safetensors and in two\.safetensors"):
        open_safetensors(tmp_path)
