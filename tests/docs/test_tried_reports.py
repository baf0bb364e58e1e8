"""Every report on the page has a test that names it in its docstring, as in "mamba 6, 72; Vim 30"."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "docs" / "tried_reports.md").read_text().splitlines() if line.startswith("| [")]
# nothing in the library normalises images, so that there is nothing to run
UNTESTED = {"lightly-train 901"}


def named(text):
    """List the reports that a docstring names."""
    parts = re.findall(r"(?:^|; )([\w.-]+) (\d+(?:, \d+)*)(?=[;:.])", text)
    return {f"{project} {number}" for project, numbers in parts for number in numbers.split(", ")}


@pytest.fixture(scope="module")
def tested():
    found = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                found |= named(ast.get_docstring(node) or "")
    return found


def test_there_are_sixty_rows():
    assert len(ROWS) >= 60


@pytest.mark.parametrize("row", ROWS, ids=[re.sub(r"\].*", "", row.strip("| [")) for row in ROWS])
def test_every_report_has_a_test(row, tested):
    reports = {" ".join(report) for report in re.findall(r"\[([\w.-]+) #(\d+)\]", row)}
    assert reports and reports <= tested | UNTESTED


def test_names_are_read_from_docstrings():
    assert named("mamba 6, 72; Vim 30: an impossible class.") == {"mamba 6", "mamba 72", "Vim 30"}
