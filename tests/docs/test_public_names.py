"""Every public name stands on a page, and the page of sizes lists those of the registry."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from transmamba import models
from transmamba.models.builders import BUILDERS

ROOT = Path(__file__).parents[2]
FOLDERS = ("data", "distill", "models", "nn", "ops", "transfer")


@pytest.fixture(scope="module")
def words():
    """Collect the words of the code on all pages: `encode` in a sentence is not a name."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    code = [part for page in pages for part in re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)]
    return {word for part in code for word in re.findall(r"\w+", part)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_public_name_stands_on_a_page(folder, words):
    """A name that no user needs leaves the `__init__` of its folder; any other belongs on a page of docs."""
    exported = vars(import_module(f"transmamba.{folder}"))
    public = {name for name, value in exported.items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public, folder
    assert sorted(public - words) == []


def test_the_page_of_sizes_is_the_registry():
    page = (ROOT / "docs/howto/saving.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE))
    first = {name: inspect.getdoc(BUILDERS[name]).splitlines()[0] for name in models.list_models()}
    assert rows == {name: line.removeprefix("Build ").rstrip(".") for name, line in first.items()}
