"""What the site does that Markdown does not: equations, inline pictures, notebooks as pages."""

import importlib
import re
import sys
from inspect import ismodule
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
FOLDERS = ("", "ops", "nn", "models", "distill", "transfer", "data")
# a notebook's place in the repository; its page stands one folder nearer
NOTEBOOK = re.compile(r"\]\(\.\./((?:\.\./)*notebooks/\w+)\.ipynb")
BAR = re.compile(r"\d%\|.*\| *\d+/\d+ \[")
# the two forms that a repository's own page renders as well
BLOCK, INLINE = re.compile(r"^```math\n(.*?)^```", re.M | re.S), re.compile(r"\$`(.+?)`\$")
PLACE = re.compile(r"(?:<p>)?equation-place-(\d+)-(block|inline)(?:</p>)?")

sys.path.insert(0, str(ROOT))  # this checkout, installed or not
equations: dict[str, list[str]] = {}


def on_config(config: Any) -> Any:
    """Give every notebook, and every page that stands in no section, a place in the navigation."""
    for section in config.nav:
        if "Notebooks" in section:
            section["Notebooks"] = [{title(path): f"notebooks/{path.stem}.md"} for path in notebooks()]
    named = str(config.nav)
    extra = [p.name for p in sorted((ROOT / "docs").glob("*.md")) if f"'{p.name}'" not in named]
    how_to = next(section["How to"] for section in config.nav if "How to" in section)
    how_to += extra
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the notebooks, converted, with their pictures, and a page of names for each folder of the library."""
    for folder in FOLDERS:
        files.append(File.generated(config, f"api/{folder or 'index'}.md", content=names(folder)))
    for path in notebooks():
        text, resources = MarkdownExporter().from_notebook_node(without_bars(path))
        # a table or widget is HTML already; styles of its own would leak into the page
        text = re.sub(r"<style.*?</style>", "", text, flags=re.S)
        for name, data in resources["outputs"].items():
            unique = f"{path.stem}_{name}"
            text = text.replace(f"({name})", f"({unique})")
            files.append(File.generated(config, f"notebooks/{unique}", content=data))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Take the equations out before Markdown sees their stars and underscores; let links to notebooks find pages."""
    found = equations[page.file.src_uri] = []

    def take(kind: str) -> Any:
        def place(match: re.Match[str]) -> str:
            # without a mathematical font, limits above and below a sum run into it
            equation = convert(match[1].strip(), display=kind)
            found.append(equation.replace("munderover", "msubsup").replace("munder", "msub"))
            return f"equation-place-{len(found) - 1}-{kind}"

        return place

    markdown = NOTEBOOK.sub(r"](\1.md", markdown)
    return INLINE.sub(take("inline"), BLOCK.sub(take("block"), markdown))


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Put the equations back as MathML, and the pictures into the page, where they take its colours."""
    found = equations.pop(page.file.src_uri)
    html = PLACE.sub(
        lambda m: found[int(m[1])] if m[2] == "inline" else f'<div class="eq">{found[int(m[1])]}</div>', html
    )
    return re.sub(r'<img alt="([^"]*)" src="[./]*pictures/(\w+)\.svg" ?/>', picture, html)


def names(folder: str) -> str:
    """The public names of one folder; their docstrings do the work."""
    path = f"transmamba.{folder}" if folder else "transmamba"
    module = importlib.import_module(path)
    public = [name for name, value in vars(module).items() if not name.startswith("_") and not ismodule(value)]
    lines = [f"# {folder or 'transmamba'}", "", *(module.__doc__ or "").splitlines(), ""]
    return "\n".join([*lines, *(f"::: {path}.{name}\n" for name in public)])


def picture(match: re.Match[str]) -> str:
    """The SVG itself, without its colours for standing alone."""
    source = (PICTURES / f"{match[2]}.svg").read_text()
    return re.sub(r"\s*\n\s*", "", re.sub(r"<style>.*?</style>", "", source, flags=re.S))


def notebooks() -> list[Path]:
    """All notebooks, in order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def without_bars(path: Path) -> Any:
    """A notebook without its progress bars, of which a page shows the start only."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = (output.get("data", {}).get("text/plain", "") for output in cell.outputs)
            cell.outputs = [o for o, text in zip(cell.outputs, texts, strict=True) if not BAR.search(text)]
    return notebook


def title(path: Path) -> str:
    """Number and first heading of a notebook."""
    first = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0]
    return f"{path.stem[:2]} {first.lstrip('# ')}"
