import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transmamba.distill import fused


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="package triton is not installed")
def test_fused_cases_pass_in_the_interpreter_or_on_a_gpu():
    # triton decides when it is imported whether kernels are interpreted, so the cases need a fresh process
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).parent / "fused_cases.py"),
    ]
    settings = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_plain_operations_run_where_the_kernel_does_not(monkeypatch):
    x = torch.ones(1, 2, 3)
    monkeypatch.setattr(fused, "_INTERPRETED", True)
    assert fused.fusible(x, x)
    assert not fused.fusible(x.double(), x.double())
    assert not fused.fusible(x.mT.contiguous().mT, x)
    assert not fused.fusible(x[:, :0], x[:, :0])
    monkeypatch.setattr(fused, "_INTERPRETED", False)
    assert not fused.fusible(x, x)


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("switch", ["0", "1"])
def test_the_interpreter_runs_where_triton_is_installed_and_told_to(monkeypatch, installed, switch):
    monkeypatch.setenv("TRITON_INTERPRET", switch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert runpy.run_path(fused.__file__)["_INTERPRETED"] == (installed and switch == "1")
