"""The site builds without a warning, and needs nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs/mkdocs.yml", "-d", str(folder)]
    # an announcement of the theme's successor is not a warning about these pages
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return folder


def assert_pictures_exist(page):
    pictures = re.findall(r'<img alt="[^"]*" src="([^"]+)"', page.read_text())
    assert all((page.parent / name).exists() for name in pictures if not name.startswith("data:")), page


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link[^>]*rel=[\"']?(?:stylesheet|preload|preconnect)[\"']?[^>]*>", text)
        assert not [name for name in loaded if "//" in name and not name.startswith("data:")], page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_equations_and_pictures_are_in_the_pages(site):
    for source in (ROOT / "docs").rglob("*.md"):
        text = source.read_text()
        path = (site / source.relative_to(ROOT / "docs")).with_suffix(".html")
        page = path.read_text()
        assert "equation-place" not in page
        assert page.count("<math") == text.count("```math") + text.count("$`"), source
        # drawings of the site's own code are part of the page and take its colours; curves are files
        assert page.count('<svg class="tm"') == len(re.findall(r"pictures/\w+\.svg\)", text)), source
        assert_pictures_exist(path)


def test_every_notebook_is_a_page(site):
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert_pictures_exist(site / "notebooks" / f"{notebook.stem}.html")


def test_every_public_name_has_an_entry(site):
    import transmamba

    for folder in ("ops", "nn", "models", "distill", "transfer", "data"):
        page = (site / "api" / f"{folder}.html").read_text()
        module = getattr(transmamba, folder)
        public = [n for n, v in vars(module).items() if not n.startswith("_") and not isinstance(v, type(module))]
        assert public
        assert not [name for name in public if f'id="transmamba.{folder}.{name}"' not in page]
