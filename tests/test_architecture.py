"""The shape of the library: who may import whom, what is public, how big things are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import transmamba

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "transmamba"
MODULES = sorted(PACKAGE.rglob("*.py"))
BOTTOM = ("_typing", "_checkpoint", "_layer_maps")
# what a stratum may import beside itself and the bottom; "a.b" admits that module alone
MAY_IMPORT = {
    "_typing": set(),
    "_checkpoint": set(),
    "_layer_maps": set(),
    "ops": set(),
    "nn": {"ops"},
    "models": {"ops", "nn", "transfer.teachers"},
    "distill": {"ops.orders", "ops.resize"},
    "transfer": {"ops.resize"},
    "data": set(),
}
PUBLIC = {
    "AdaptiveLayerDistill", "BidirectionalDistill", "CrossMamba", "FeatureCalibrator", "TransMambaLoss",
    "selective_scan", "subclone", "data", "distill", "models", "nn", "ops", "transfer",
}  # fmt: skip
LAZY = {
    "PIL", "av", "lmms_eval", "triton", "mamba_ssm", "causal_conv1d", "timm", "transformers", "tqdm", "safetensors",
    "huggingface_hub",
}  # fmt: skip


def imports(path):
    """Dotted names that a file imports when it is imported itself, and the functions' local ones apart."""
    tree = ast.parse(path.read_text())
    local = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    top, inner = set(), set()
    for node in ast.walk(tree):
        names = (
            {a.name for a in node.names}
            if isinstance(node, ast.Import)
            else {node.module}
            if isinstance(node, ast.ImportFrom) and node.module
            else set()
        )
        (inner if id(node) in local else top).update(names)
    return top, inner


def stratum(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = stratum(path)
    if own in ("__init__", "doctor"):
        return
    for name in set().union(*imports(path)):
        parts = name.split(".")
        if (
            parts[0] != "transmamba"
            or len(parts) == 1
            or parts[1] == own
            or (parts[1] in BOTTOM and own not in BOTTOM[:1])
        ):
            continue
        allowed = MAY_IMPORT[own]
        assert parts[1] in allowed or ".".join(parts[1:3]) in allowed, f"{own} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_annotations_are_evaluated(path):
    assert "from __future__ import annotations" not in path.read_text()


def test_public_names():
    names = {n for n in vars(transmamba) if not n.startswith("_")}
    # a program becomes an attribute when a test imports it
    assert names - {"doctor"} == PUBLIC


def test_no_module_hides_behind_a_function_of_its_name():
    for package in ("ops", "nn", "models", "distill", "transfer", "data"):
        exported = vars(getattr(transmamba, package))
        for path in (PACKAGE / package).glob("*.py"):
            shadow = exported.get(path.stem)
            assert shadow is None or getattr(shadow, "__file__", None), f"{package}.{path.stem}"


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
    if path.stem in ("triton_forward", "triton_backward", "triton_cross_kernels"):
        return  # a kernel is one function, and what it calls is inlined anyway
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
