"""A distributed program ends with the exit code of its work, whatever gloo's threads do meanwhile."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shims import preload

ROOT = Path(__file__).parents[2]


def run(*command, timeout=120, **environment):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": ""} | environment,
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


# the last callback of atexit lets the late worker go and keeps the GIL, so that it waits for the GIL while the
# interpreter begins to finalise; torch.distributed.nn.functional holds the group after it is destroyed, as DDP does
LATE = """
import atexit, ctypes, sys
shim = ctypes.PyDLL(sys.argv[1])
def last_moment():
    sys.setswitchinterval(60)  # who waits for the GIL does not ask for it
    ctypes.c_int.in_dll(shim, "late_go").value = 1
    shim.usleep(200000)
atexit.register(last_moment)
import torch, torch.distributed as dist
from transmamba.distill import ends_process
def work():
    dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=0, world_size=1)
    import torch.distributed.nn.functional
    ctypes.c_int.in_dll(shim, "late_on").value = 1
    dist.all_reduce(torch.zeros(3))
    if sys.argv[3] == "plain":
        dist.destroy_process_group()
    print("done", flush=True)
    if sys.argv[3] == "error":
        raise ValueError("out of paper")
(work if sys.argv[3] == "plain" else ends_process(work))()
"""


@pytest.fixture
def late(tmp_path):
    shim = preload(Path(__file__).with_name("late_worker.c"), tmp_path)
    return lambda how, **limit: run("-c", LATE, shim, tmp_path / how, how, LD_PRELOAD=str(shim), **limit)


def test_a_late_worker_of_gloo_does_not_abort_the_process(late):
    try:
        plain = late("plain", timeout=40)
    except subprocess.TimeoutExpired as hanging:  # as of Python 3.14 the late thread stops, and gloo waits for it
        assert hanging.stdout == b"done\n"
    else:
        assert plain.stdout == "done\n"
        if plain.returncode != -signal.SIGABRT:
            pytest.skip(f"a late worker aborts no process of this Python and torch (exit code {plain.returncode})")
    ended = late("ended")
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_an_error_is_reported_whatever_a_late_worker_does(late):
    failed = late("error")
    assert failed.returncode == 1
    assert failed.stderr.rstrip().endswith("ValueError: out of paper")


END = """
import atexit, sys, threading, time
from transmamba.distill import ends_process
atexit.register(lambda: print("callback"))
@ends_process
def main(statement):
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    print("main")
    exec(statement)
main(sys.argv[1])
print("never")
"""


@pytest.mark.parametrize(
    ("statement", "code", "error"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no data')", 1, "no data\n"),
        ("sys.exit()", 0, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt\n"),
    ],
)
def test_exit_codes_are_those_of_python_and_nothing_is_left_out(statement, code, error):
    done = run("-c", END, statement)
    assert done.returncode == code
    # a pipe is written when it is flushed: all of it is there
    assert done.stdout.split() == ["main", "thread", "callback"]
    assert done.stderr.endswith(error) and bool(done.stderr) == bool(error)


def test_output_that_cannot_be_written_is_an_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        script, environment = END.replace("exec(statement)", "return"), os.environ | {"PYTHONUNBUFFERED": ""}
        done = subprocess.run([sys.executable, "-c", script, ""], stdout=closed, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 120  # as Python ends


WRITES_LATE = """
import sys, time, torch.distributed as dist
from pathlib import Path
from transmamba.distill import ends_process
import torch.multiprocessing as mp
@ends_process
def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    if rank == 0:
        time.sleep(1)
    Path(folder, f"{rank}").touch()
    if Path(folder, "fail").exists() and rank == 1:
        raise ValueError("rank 1 is out of paper")
if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.parametrize("fails", [False, True])
def test_processes_wait_for_each_other_and_a_failure_ends_all(tmp_path, fails):
    script = tmp_path / "two.py"
    script.write_text(WRITES_LATE)
    if fails:
        (tmp_path / "fail").touch()
    done = run(script, tmp_path)
    assert bool(done.returncode) == fails, done.stderr
    assert ("ValueError: rank 1 is out of paper" in done.stderr) == fails
    assert (tmp_path / "1").exists()
    assert (tmp_path / "0").exists() or fails
