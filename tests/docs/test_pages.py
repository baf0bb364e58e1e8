"""The code on the pages of the documentation runs, and the pictures are those that their code draws."""

import doctest
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
# the comment that stands before a block which cannot run here, with the reason
NOT_RUN = re.compile(r"<!-- not run: .+? -->\n\n?$", re.DOTALL)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text):
    """List (first line, code) of every Python block that is not marked."""
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if not NOT_RUN.search(text[: match.start()]):
            yield text[: match.start(1)].count("\n"), match[1]


def page_id(path):
    return str(path.relative_to(DOCS))


@pytest.mark.parametrize("page", [page for page in PAGES if any(True for _ in blocks(page.read_text()))], ids=page_id)
def test_code_runs(page, tmp_path, monkeypatch):
    """The blocks of a page share their names; one with prompts must print the output below them."""
    monkeypatch.chdir(tmp_path)
    # a module that can be imported, as a script is: torch.compile looks up the globals of a function by its name
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = vars(module)
    for line, code in blocks(page.read_text()):
        if ">>> " in code:
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            failed, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(test, clear_globs=False)
            names = test.globs
            assert not failed
        else:
            # empty lines in front, so that a traceback names the line of the page
            exec(compile("\n" * line + code, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_pages(page):
    """The site holds the pages, the pictures and the notebooks: a link to any other file would be dead there."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        path = (page.parent / target).resolve()
        assert path.is_file(), target
        assert path.is_relative_to(DOCS) or path.suffix == ".ipynb", target


def test_what_is_not_run_says_why():
    for page in PAGES:
        text = page.read_text()
        assert text.count("<!-- not run") == len(re.findall(r"<!-- not run: .+? -->\n\n?```python", text, re.DOTALL)), (
            page
        )


def generator(name):
    """Import a module of docs/mkdocs, which is not a package."""
    path = DOCS / "mkdocs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    sys.path.remove(str(path.parent))
    return module


def test_the_table_of_teachers_is_what_the_families_say():
    families = generator("families")
    kept = families.MARKED.search((DOCS / "inheritance.md").read_text())
    assert kept and kept[0] == families.tables(), "python docs/mkdocs/families.py writes it"


def test_a_family_takes_less_than_forty_lines():
    page = (DOCS / "adding_a_teacher.md").read_text()
    family = next(code for _, code in blocks(page) if "FAMILIES = " in code)
    assert len(family.splitlines()) < 40


@pytest.fixture(scope="module")
def pictures():
    return generator("pictures").PICTURES


def test_every_picture_is_drawn_and_shown(pictures):
    assert {path.stem for path in (DOCS / "pictures").glob("*.svg")} == set(pictures)
    shown = {name for page in PAGES for name in re.findall(r"pictures/(\w+)\.svg", page.read_text())}
    assert shown == set(pictures)


def numbers(svg):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*", svg)]


def test_pictures_are_what_the_code_draws(pictures):
    for name, draw in pictures.items():
        drawn, kept = str(draw()), (DOCS / "pictures" / f"{name}.svg").read_text()
        # another torch may round a coordinate the other way
        assert numbers(drawn) == pytest.approx(numbers(kept), abs=0.11), f"{name}: python docs/mkdocs/pictures.py"
        assert re.sub(r"[-\d.]+", "0", drawn) == re.sub(r"[-\d.]+", "0", kept)
