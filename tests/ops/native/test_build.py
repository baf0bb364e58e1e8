import ctypes
import shutil
import sys
import types

import pytest

from transmamba.ops.native import build

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


def test_cxx_names_the_compiler_and_its_arguments(monkeypatch):
    monkeypatch.setenv("CXX", f"{shutil.which('env')} c++")
    assert build.compiler() == [shutil.which("env"), "c++"]


def test_without_a_compiler_the_message_names_what_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler found \(c\+\+, g\+\+, clang\+\+, or CXX\)"):
        build.compile_library(tmp_path / "libscan.so")


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", f"{shutil.which('sh')} -c 'echo broken; exit 3'")
    with pytest.raises(RuntimeError, match=r"(?s)failed:\n.*broken"):
        build.compile_library(tmp_path / "libscan.so")


@pytest.fixture
def hook(monkeypatch, tmp_path):
    """Run the hook on a stand-in for hatchling, building into a temporary place; return the lines that it displayed."""
    base = types.ModuleType("hatchling.builders.hooks.plugin.interface")
    base.BuildHookInterface = object
    for name in ("hatchling", "hatchling.builders", "hatchling.builders.hooks", "hatchling.builders.hooks.plugin"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "libscan.so")
    made = build.get_build_hook()()
    made.root, made.target_name, shown = str(tmp_path), "wheel", []
    made.app = types.SimpleNamespace(display_warning=shown.append)
    return made, shown


def test_a_failed_build_warns_and_leaves_a_pure_wheel(hook, monkeypatch):
    made, shown = hook
    build.LIBRARY.write_text("of an older build")
    monkeypatch.setenv("CXX", "no-such-compiler")
    data = {"artifacts": [], "pure_python": True}
    made.initialize("standard", data)
    assert data == {"artifacts": [], "pure_python": True}
    assert not build.LIBRARY.exists()
    assert "built without its native CPU scan: no C++ compiler found" in shown[0]


def test_a_source_distribution_compiles_nothing(hook):
    made, _ = hook
    made.target_name = "sdist"
    data: dict = {}
    made.initialize("standard", data)
    assert data == {}


@pytest.mark.slow
@needs_compiler
def test_a_wheel_carries_a_library_for_its_platform_and_any_python(hook):
    made, shown = hook
    data = {"artifacts": []}
    made.initialize("standard", data)
    assert shown == []
    assert data["artifacts"] == ["libscan.so"]
    assert not data["pure_python"]
    assert data["tag"].startswith("py3-none-")
    assert ctypes.CDLL(str(build.LIBRARY)).scan_size() > 0
