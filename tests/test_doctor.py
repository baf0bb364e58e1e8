import subprocess
import sys

import pytest
import torch

from transmamba import doctor
from transmamba.ops.dispatch import TABLE, Backend


def test_report_names_versions_and_every_backend():
    found = subprocess.run([sys.executable, "-m", "transmamba.doctor"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"torch {torch.__version__.split('+')[0]}" in found.stdout
    for backend in TABLE["scan"]:
        assert f"  {backend.name} " in found.stdout
    assert found.stdout.count("reference  right") == 2
    assert "selective scan on cpu" in found.stdout and "cross scan on cpu" in found.stdout
    assert "a scan of bfloat16 on an NVIDIA GPU would run on" in found.stdout
    assert "needs a CUDA tensor" in found.stdout or torch.cuda.is_available()


@pytest.fixture
def table(monkeypatch):
    def replace(run):
        entry = Backend("chunked", run, lambda problem: [])
        entries = tuple(entry if b.name == "chunked" else b for b in TABLE["scan"])
        monkeypatch.setitem(TABLE, "scan", entries)

    return replace


def test_a_wrong_result_is_found(table, capsys):
    reference = TABLE["scan"][-1].run
    table(lambda problem: (reference(problem)[0] * 1.1, reference(problem)[1]))
    # 10 % on the outputs are 21 % on the gradients of their squares
    assert doctor.main() == 1
    assert "chunked    WRONG, relative error 2.1e-01" in capsys.readouterr().out


def test_a_crash_is_reported_and_the_rest_still_examined(table, capsys):
    def crash(problem):
        raise RuntimeError("undefined symbol")

    table(crash)
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "chunked    FAILS: RuntimeError: undefined symbol" in out
    assert "reference  right" in out


def test_the_path_on_a_gpu_is_named_with_its_reasons(monkeypatch):
    monkeypatch.setattr(doctor.cuda, "load", lambda: (None, "mamba-ssm is not there"))
    monkeypatch.setattr(doctor.triton, "INSTALLED", True)
    monkeypatch.setattr(doctor.nvrtc, "unavailable", lambda: ("NVRTC was not found", "the driver was not found"))
    lines = list(doctor.on_a_gpu())
    assert "would run on triton here" in lines[0]
    assert lines[1:] == [
        "  cuda       mamba-ssm is not there",
        "  nvrtc      NVRTC was not found; the driver was not found",
        "  triton     found",
    ]
    monkeypatch.setattr(doctor.nvrtc, "unavailable", lambda: ())
    assert "would run on nvrtc here" in next(doctor.on_a_gpu())
    monkeypatch.setattr(doctor.nvrtc, "unavailable", lambda: ("no",))
    monkeypatch.setattr(doctor.triton, "INSTALLED", False)
    assert "would run on chunked here" in next(doctor.on_a_gpu())
