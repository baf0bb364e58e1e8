import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.scan.native.problems import cast, computed, gradients_of_outputs, problem
from tests.shims import preload
from transmamba.ops.native import library
from transmamba.ops.scan import native

pytestmark = pytest.mark.skipif(not library.available(), reason="the package was built without the native library")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_baseline_is_always_there_and_comes_last():
    assert library.variants()[-1] == "baseline"


@pytest.mark.parametrize("variant", library.variants() if library.available() else ())
@pytest.mark.parametrize("state", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads, state, variant):
    p = cast(problem(5, 2, 41, 397, state), torch.float32)
    # one channel whose decays need the longer way to their exponentials, in whichever part
    p.A[..., 390] *= 300
    grads = gradients_of_outputs(p)
    threads(1)
    alone = computed(p, *grads, variant)
    for count in (2, 3, 7):
        threads(count)
        together = computed(p, *grads, variant)
        assert all(torch.equal(together[name], x) for name, x in alone.items())


def test_without_an_openmp_runtime_threads_of_its_own_do_the_same(threads, monkeypatch):
    p = cast(problem(5, 2, 41, 397, 5), torch.float32)
    grads = gradients_of_outputs(p)
    with_team = computed(p, *grads)
    monkeypatch.setattr(library, "_team", lambda: None)
    threads(3)
    assert all(torch.equal(x, with_team[name]) for name, x in computed(p, *grads).items())


def scan_in_child(p, queue):
    queue.put(native.forward(p, False)[0].sum().item())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("in_parent", [1, 2])
def test_a_forked_worker_scans_after_its_parent_did(threads, in_parent):
    threads(in_parent)
    # small enough for torch's own operations to stay on one thread: they do hang in a forked process
    p = cast(problem(2, 2, 11, 397, 5), torch.float32)
    parents = native.forward(p, False)[0].sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=scan_in_child, args=(p, queue))
    worker.start()
    worker.join(timeout=20)
    alive = worker.is_alive()
    worker.kill()
    assert not alive, "the scan hangs in a forked worker"
    assert worker.exitcode == 0
    assert queue.get() == parents


FEW_THREADS = """
import ctypes, sys, torch
from tests.ops.scan.native.problems import cast, computed, gradients_of_outputs, problem
from transmamba.ops.native import library
torch.manual_seed(0)
p = cast(problem(5, 2, 41, 397, 5), torch.float32)
grads = gradients_of_outputs(p)
torch.set_num_threads(1)
alone = computed(p, *grads)
torch.get_num_threads, library._team = lambda: 4, lambda: None  # torch's own threads are none of its business
ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[1]), "threads_left").value = int(sys.argv[2])
assert all(torch.equal(x, alone[name]) for name, x in computed(p, *grads).items())
print("equal")
"""


@pytest.mark.parametrize("left", [0, 1])
def test_where_threads_cannot_be_started_fewer_do_the_same(tmp_path, left):
    shim = preload(Path(__file__).with_name("no_threads.c"), tmp_path)
    path = os.pathsep.join([str(Path(__file__).parents[4]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", FEW_THREADS, str(shim), str(left)],
        env=os.environ | {"PYTHONPATH": path, "LD_PRELOAD": str(shim)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


def test_no_memory_is_an_error_with_the_remedy(monkeypatch):
    class Starved:
        run_scan = run_conv = staticmethod(lambda *_: 0)

    monkeypatch.setattr(library, "_library", lambda: Starved)
    with pytest.raises(MemoryError, match="use fewer threads, torch.set_num_threads"):
        library.run(library.Scan(), backward=False, variant=None)
