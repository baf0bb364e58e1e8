"""The shape of the library: imports between strata, public names, sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import transmamba
from tests import mutation_tests, mutations

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "transmamba"
MODULES = sorted(PACKAGE.rglob("*.py"))
BOTTOM = {"_typing", "_checkpoint", "_layer_maps"}
# imports of a stratum beside itself; "a.b" admits that module alone
MAY_IMPORT = {
    "_typing": set(),
    "_checkpoint": {"_typing"},
    "_layer_maps": {"_typing"},
    "ops": BOTTOM,
    "nn": {*BOTTOM, "ops"},
    "models": {*BOTTOM, "ops", "nn", "transfer.teachers"},
    "distill": {*BOTTOM, "ops.orders", "ops.resize"},
    "transfer": {*BOTTOM, "ops.resize"},
    "data": BOTTOM,
    "testing": {"_typing", "models"},
}
PUBLIC = {
    "AdaptiveLayerDistill", "BidirectionalDistill", "CrossMamba", "FeatureCalibrator", "TransMambaLoss",
    "selective_scan", "subclone", "data", "distill", "models", "nn", "ops", "transfer",
}  # fmt: skip
LAZY = {
    "PIL", "av", "lmms_eval", "triton", "mamba_ssm", "causal_conv1d", "timm", "transformers", "tqdm", "safetensors",
    "huggingface_hub",
}  # fmt: skip


def dotted(path):
    """Return the name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(path): path for path in MODULES}


def imports(source, files=FILES):
    """Collect dotted names that a file imports, also in functions; `from a import b` is a.b if that is a file."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import of {node.module or '.'}: write the whole name"
            inside = {f"{node.module}.{a.name}" for a in node.names}
            names |= {name if name in files else node.module for name in inside}
    return names


def circle(graph):
    """Find names that import each other in a circle, first and last the same; none if there is no circle."""
    finished = set()

    def visit(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        found = []
        if name not in finished:
            found = next(filter(None, (visit(other, [*path, name]) for other in sorted(graph[name]))), [])
            finished.add(name)
        return found

    return next(filter(None, (visit(name, []) for name in sorted(graph))), [])


def stratum(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = stratum(path)
    if own in ("__init__", "doctor"):
        return
    for name in imports(path.read_text()):
        first, *parts = name.split(".")
        if first == "transmamba":
            allowed = {own, *MAY_IMPORT[own]}
            assert parts, f"{own} must not import the whole library"
            assert parts[0] in allowed or ".".join(parts[:2]) in allowed, f"{own} must not import {name}"


def imported_files(name):
    """Collect our files that a file imports; a package that finds its files by itself imports them all."""
    path = FILES[name]
    source = path.read_text()
    if "iter_modules(__path__)" not in source:
        return imports(source) & FILES.keys()
    return (imports(source) & FILES.keys()) | {dotted(other) for other in path.parent.glob("*.py") if other != path}


def test_no_files_import_in_a_circle():
    assert " -> ".join(circle({name: imported_files(name) for name in FILES})) == ""


def test_a_circle_is_found_inside_functions_too():
    sources = {
        "a": "import os",
        "a.b": "from a.c import x\nfrom a import d",
        "a.c": "def f():\n    import a.d",
        "a.d": "def f():\n    def g():\n        from a import b",
        "a.e": "if TYPE_CHECKING:\n    from a import b, y",
    }
    graph = {name: imports(source, sources) & sources.keys() for name, source in sources.items()}
    assert graph == {"a": set(), "a.b": {"a.c", "a.d"}, "a.c": {"a.d"}, "a.d": {"a.b"}, "a.e": {"a", "a.b"}}
    assert circle(graph) == ["a.b", "a.c", "a.d", "a.b"]
    assert circle({**graph, "a.d": set()}) == []
    assert circle({**graph, "a.d": set(), "a": {"a"}}) == ["a", "a"]
    with pytest.raises(AssertionError, match="relative import of b"):
        imports("from .b import x")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_are_statements(path):
    source = path.read_text()
    words = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(ast.parse(source))}
    assert not words & {"import_module", "__import__"} or "iter_modules(__path__)" in source


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_annotations_are_evaluated(path):
    assert "from __future__ import annotations" not in path.read_text()


def test_public_names():
    names = {n for n in vars(transmamba) if not n.startswith("_")}
    # a program and the checks for users become attributes when a test imports them
    assert names - {"doctor", "testing"} == PUBLIC


def test_no_module_hides_behind_a_function_of_its_name():
    for package in ("ops", "nn", "models", "distill", "transfer", "data"):
        exported = vars(getattr(transmamba, package))
        for path in (PACKAGE / package).glob("*.py"):
            shadow = exported.get(path.stem)
            assert shadow is None or getattr(shadow, "__file__", None), f"{package}.{path.stem}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem == "__init__"], ids=lambda p: p.parent.name)
def test_no_file_takes_the_name_of_a_function_of_its_package(path):
    # importing the file would put the module in the place of the function
    defined = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert not defined & {other.stem for other in path.parent.glob("*.py")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_records_do_not_change(path):
    for node in ast.walk(ast.parse(path.read_text())):
        # a configuration that users set, and records that loops fill
        if not isinstance(node, ast.ClassDef) or node.name in ("LanguageModelConfig", "Place", "Table", "Taught"):
            continue
        marks = [mark for mark in map(ast.unparse, node.decorator_list) if "dataclass" in mark]
        assert set(marks) <= {"dataclass(frozen=True)"}, node.name


def test_mutations_name_files_and_tests_that_exist():
    assert all((PACKAGE / f"{name}.py").exists() for name in mutation_tests.TESTS)
    changed = [path for path in mutations.sources(["ops", "distill", "transfer"]) if mutations.places(path.read_text())]
    assert len(changed) > 100 and all(mutation_tests.tests_of(path) for path in changed)


def test_import_loads_no_optional_package():
    script = f"""
import sys, torch
before = set(sys.modules)
import transmamba
print(*({LAZY!r} & (set(sys.modules) - before)))"""
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    assert loaded.stdout.split() == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    if "triton.jit" in source:
        return  # a kernel is one function, and its callees are inlined anyway
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 45, f"{node.name} has {length} lines"


def test_top_level_of_the_repository():
    allowed = {
        "transmamba", "notebooks", "tests", "docs", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md",
        "CITATION.cff", "build", "dist", "site",
    }  # fmt: skip
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not p.name.endswith(".egg-info")}
    assert found <= allowed
