"""Change one operator or constant at a time, and count the changes that tests notice. A program, not part of CI:

    python -m tests.mutations ops distill --count 10 --seed 1 --log mutations.jsonl

draws 10 changes of each file of the two folders, makes one after the other in a copy of the repository, and runs the
tests that `tests/mutation_tests.py` names for the file. One process imports everything but the library, once, and forks
for every change, so that a change costs little more than its tests. The log gets a line of JSON per change, and a run
that was interrupted goes on where the log ends. A change that "survived" is either a missing test or means the same.
"""

import argparse
import ast
import gc
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutation_tests import ROOT, tests_of

OPERATORS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "==": "!=", "!=": "==", "and": "or", "or": "and", "is": "is not", "in": "not in", "&": "|", "|": "&",
}  # fmt: skip
SIGNS: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.BitAnd: "&",
    ast.BitOr: "|", ast.And: "and", ast.Or: "or", ast.Is: "is", ast.In: "in",
}  # fmt: skip
# a change may ask for all the memory of the machine
MEMORY = 16 << 30


def places(source: str) -> list[tuple[int, int, str, str]]:
    """List (start, end, new text, old text) of every change, in characters; skip annotations and texts."""
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def at(node: ast.AST, end: bool = False) -> int:
        line, column = (node.end_lineno, node.end_col_offset) if end else (node.lineno, node.col_offset)  # type: ignore[attr-defined]
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    skipped = {id(part) for node in ast.walk(tree) for note in _annotations(node) for part in ast.walk(note)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for left, sign, right in _operators(node):
            begin, text = at(left, end=True), source[at(left, end=True) : at(right)]
            if text.strip("() \n\t") == sign:
                begin += text.index(sign)
                found.add((begin, begin + len(sign), OPERATORS[sign], sign))
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            old = source[at(node) : at(node, end=True)]
            # Python 3.11 gives wrong places within f-strings
            if _is_literal(old, node.value):
                new = not node.value if isinstance(node.value, bool) else node.value + 1
                found.add((at(node), at(node, end=True), str(new), old))
    return sorted(found)


def _is_literal(text: str, value: object) -> bool:
    try:
        return repr(ast.literal_eval(text)) == repr(value)
    except (SyntaxError, ValueError):
        return False


def _annotations(node: ast.AST) -> list[ast.AST]:
    found = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [note for note in found if isinstance(note, ast.AST)]


def _operators(node: ast.AST) -> Iterator[tuple[ast.AST, str, ast.AST]]:
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        yield node.left, SIGNS[type(node.op)], node.right
    if isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield left, SIGNS[type(node.op)], right
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SIGNS:
        yield node.left, SIGNS[type(node.ops[0])], node.comparators[0]


class Watch:
    """A plugin of pytest: run those tests first that noticed most changes before, and name the one that fails."""

    def __init__(self, noticed: Counter[str]):
        self.noticed, self.failed = noticed, ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: -self.noticed[item.nodeid])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.failed = report.nodeid if report.failed else self.failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = report.nodeid if report.failed else self.failed


def _run(tests: list[str], noticed: Counter[str], folder: Path) -> dict[str, object]:
    """Run the tests in this process, a file at a time so that a change noticed by the first costs no more than that."""
    watch = Watch(noticed)
    # the plugins are imported before pytest could rewrite their assertions
    imported = "ignore::pytest.PytestAssertRewriteWarning"
    options = [
        "-W",
        imported,
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--hypothesis-seed=0",
        f"--basetemp={folder / 'tests'}",
    ]
    code = 0
    for file in tests:
        code = int(pytest.main([*options, file], plugins=[watch]))
        if code:
            break
    modules = [
        name for name in sys.modules if name.split(".")[0] not in ("transmamba", "tests", "conftest", "__main__")
    ]
    return {"code": code, "by": watch.failed, "modules": modules}


def fork(tests: list[str], noticed: Counter[str], folder: Path, cpu: int, wall: int) -> dict[str, object]:
    """Run the tests in a process of its own, of which no process is left over.

    Returns:
        `code` of pytest, `by`, the test that failed, `modules`, and the seconds of CPU. A process that died has the
        number of its signal, negative, as its code, and one that was stopped after `wall` seconds has "too slow".
    """
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            output = os.open(folder / "output", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            with os.fdopen(write, "w") as pipe:
                json.dump(_run(tests, noticed, folder), pipe)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as pipe:
        late = not select.select([pipe], [], [], wall)[0]
        if late:
            os.killpg(pid, signal.SIGKILL)
        answer = pipe.readline()
    _, status, usage = os.wait4(pid, 0)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    died = {"code": "too slow" if late else os.waitstatus_to_exitcode(status), "by": "", "modules": []}
    return (json.loads(answer) if answer else died) | {"cpu": round(usage.ru_utime + usage.ru_stime, 1)}


class Changes:
    """The changes of files in a copy of the repository, which is the working directory from here on."""

    def __init__(self, folder: Path, wall: int):
        self.folder, self.wall, self.noticed = folder, wall, Counter[str]()
        self.seconds: dict[str, float] = {}
        copy = folder / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".hypothesis"))
        os.chdir(copy)
        sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONPATH": str(copy)}
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]

    def prepare(self, tests: list[str]) -> float:
        """Run the tests without a change, import here what they imported, and return their seconds of CPU.

        Raises:
            RuntimeError: They fail without a change.
        """
        key = " ".join(tests)
        if key not in self.seconds:
            found = fork(tests, self.noticed, self.folder, 3600, self.wall)
            if found["code"]:
                raise RuntimeError(
                    f"without a change {found['by']} fails: {(self.folder / 'output').read_text()[-2000:]}"
                )
            for name in found["modules"]:
                try:
                    importlib.import_module(name)
                except Exception:  # some are made by tests, or refuse a second name
                    pass
            gc.freeze()
            self.seconds[key] = found["cpu"]
        return self.seconds[key]

    def make(self, name: str, change: tuple[int, int, str, str]) -> dict[str, object]:
        """Change a file of the copy, run its tests, and put it back as it was.

        Raises:
            ValueError: The file no longer has the text that is to be changed there.
        """
        begin, end, new, old = change
        target, tests = Path(name), tests_of(ROOT / name)
        source, times = target.read_text(), target.stat()
        if source[begin:end] != old:
            raise ValueError(f"{name} has {source[begin:end]!r} at {begin}, expected {old!r}: draw its changes anew")
        limit = int(30 + 3 * self.prepare(tests))
        sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
        target.write_text(source[:begin] + new + source[end:])
        try:
            found = fork(tests, self.noticed, self.folder, limit, self.wall)
        finally:
            target.write_text(source)
            os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
            sys.dont_write_bytecode = False
            del os.environ["PYTHONDONTWRITEBYTECODE"]
        self.noticed[found["by"]] += 1
        return {"code": found["code"], "by": found["by"], "cpu": found["cpu"]}


def sources(what: list[str]) -> list[Path]:
    """List Python files of the library; kernels of Triton and C++ have tests of their own kind and are left out."""
    library = ROOT / "transmamba"
    found = [file for name in what for file in library.glob(f"{name}/**/*.py" if "." not in name else name)]
    kernels = {"triton", "native", "cuda", "triton_kernels", "cosine_kernels"}
    return sorted(file for file in found if not kernels & {*file.relative_to(library).with_suffix("").parts})


def draw(args: argparse.Namespace) -> Iterator[tuple[str, tuple[int, int, str, str]]]:
    """Draw the changes of every file, the files in random order so that a part of a run is a fair sample."""
    files = sources(args.what)
    random.Random(args.seed).shuffle(files)
    for file in files:
        name, found = str(file.relative_to(ROOT)), places(file.read_text())
        for change in random.Random(f"{args.seed} {name}").sample(found, min(args.count, len(found))):
            yield name, change


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="folders or files of transmamba: ops distill transfer/write.py")
    parser.add_argument("--count", type=int, default=10, help="changes per file")
    parser.add_argument("--seed", type=int, default=0, help="of the changes, and of the order of the files")
    parser.add_argument("--limit", type=int, default=900, help="seconds for the tests of one change")
    parser.add_argument("--log", type=Path, default=Path("mutations.jsonl"))
    parser.add_argument("--again", action="store_true", help="only those of the log that survived, with today's tests")
    args = parser.parse_args()
    log = args.log.resolve()
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["file"], *row["change"]): row for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        changes = Changes(Path(folder).resolve(), args.limit)
        if args.again:
            work = [(row["file"], row["change"]) for row in done.values() if row["what"] != "caught"]
        else:
            work = [(name, change) for name, change in draw(args) if (name, *change) not in done]
        for name, change in work:
            source = Path(name).read_text()
            at = source[: change[0]].count("\n")
            row = {"file": name, "line": at + 1, "change": change, "seed": args.seed} | changes.make(name, change)
            row["what"] = {0: "survived", "too slow": "too slow"}.get(row["code"], "caught")
            row["text"] = source.splitlines()[at].strip()
            done[name, *change] = row
            with log.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(f"{row['what']:8} {name}:{at + 1} {change[3]} -> {change[2]}   {row['text']}", flush=True)
    counts = Counter(row["what"] for row in done.values())
    print(f"{counts['caught']} of {len(done)} changes caught, {counts['too slow']} too slow to tell")


if __name__ == "__main__":
    main()
