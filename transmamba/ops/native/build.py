"""Build hook of the package (see `[tool.hatch.build.hooks.custom]`): compiles the library if there is a C++ compiler.

The library is plain C towards Python, so one wheel serves every Python and torch. Without a compiler, or if it fails,
the package is built without the library, with a message; the backend `native` then refuses, with the remedy.
`HATCH_BUILD_NO_HOOKS=true` in the environment of the build leaves it out on purpose; `CXX` names another compiler, and
`_PYTHON_HOST_PLATFORM`, of sysconfig, the platform that it compiles for (.ci/wheels).
Run as a script, this file compiles the library in place.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE / "libscan.so"
SOURCES = HERE.parent  # each operation has its own beside it
FLAGS = [f"-I{SOURCES}", "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"]
# decays and softplus never set errno or read the rounding mode; fused multiply-adds are wanted
ARITHMETIC = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
VARIANTS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
}


def compiler() -> list[str] | None:
    """Return the command of a C++ compiler, or None; `CXX` goes first."""
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = [named] if named else [["c++"], ["g++"], ["clang++"]]
    return next((c for c in candidates if shutil.which(c[0])), None)


def compile_library(target: Path) -> None:
    """Compile every instruction set of this machine's architecture and link them into `target`.

    Raises:
        RuntimeError: there is no compiler, or it failed; the message holds its output.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("no C++ compiler found (c++, g++, clang++, or CXX)")
    # the platform that is built for, which need not be this one
    intel = sysconfig.get_platform().endswith(("x86_64", "amd64"))
    variants: dict[str, list[str]] = {"baseline": []} | (VARIANTS if intel else {})
    with tempfile.TemporaryDirectory() as folder:
        objects = {name: str(Path(folder, f"{name}.o")) for name in [*variants, "library"]}
        jobs = [["variant.cpp", f"-DVARIANT={n}", *ARITHMETIC, *f, "-o", objects[n]] for n, f in variants.items()]
        jobs.append(["library.cpp", "-o", objects["library"]])
        _run([[*command, *FLAGS, "-c", *job] for job in jobs])
        # linked beside and moved: a process that has the old library loaded keeps it
        linked = target.with_suffix(".new")
        _run([[*command, *FLAGS, "-shared", *objects.values(), "-o", str(linked)]])
        linked.replace(target)


def _run(commands: list[list[str]]) -> None:
    pipe = subprocess.PIPE
    started = [subprocess.Popen(c, cwd=HERE, stdout=pipe, stderr=subprocess.STDOUT, text=True) for c in commands]
    outputs = [process.communicate()[0] for process in started]
    for process, command, output in zip(started, commands, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{output}")


def get_build_hook() -> type:
    """Return the hook class; called by hatchling, the only caller that needs its base."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class NativeScan(BuildHookInterface):
        def initialize(self, version: str, build_data: dict) -> None:
            if self.target_name != "wheel":
                return
            try:
                compile_library(LIBRARY)
            except (RuntimeError, OSError) as error:
                LIBRARY.unlink(missing_ok=True)
                self.app.display_warning(f"transmamba is built without its native CPU scan: {error}")
                return
            build_data["artifacts"].append(str(LIBRARY.relative_to(self.root)))
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"], build_data["tag"] = False, f"py3-none-{tag}"

    return NativeScan


if __name__ == "__main__":
    try:
        compile_library(LIBRARY)
    except RuntimeError as error:
        sys.exit(str(error))
