"""Change one operator or constant at a time, and count those that tests catch. A program of its own, not part of CI:

    python -m tests.mutations ops distill --count 10 --seed 1

changes 10 places of each file of the two folders, one after the other, in a copy of the repository, and runs the tests
of that file's name (or, if there are none, of its folder). A line with "survived" is either a missing test or a
change that means the same.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPERATORS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "==": "!=", "!=": "==", "and": "or", "or": "and", "is": "is not", "in": "not in", "&": "|", "|": "&",
}  # fmt: skip
SIGNS: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.BitAnd: "&",
    ast.BitOr: "|", ast.And: "and", ast.Or: "or", ast.Is: "is", ast.In: "in",
}  # fmt: skip
# tests of a file or of all files of a folder, where there is none of its name
NAMED = {
    "ops/scan": "ops/scan/test_scan.py ops/scan/test_scan_golden.py",
    "ops/scan/parts": "ops/scan/nvrtc/test_emulated.py",
    "ops/cross": "ops/cross/test_cross.py", "ops/conv": "ops/conv/test_conv.py",
    "ops/custom_op": "contracts/test_export.py ops/scan/test_scan.py", "ops/plain": "contracts/test_export.py",
    "ops/shapes": "ops/scan/test_scan.py ops/cross/test_cross.py ops/conv/test_conv.py",
    "distill/checks": "distill/test_adaptive.py distill/test_directional.py distill/test_baselines.py",
    "distill/fused": "distill/test_fused.py distill/test_directional.py",
    "distill/similarity": "distill/test_adaptive.py distill/test_padding.py",
    "distill/padded_linear": "distill/test_adaptive.py distill/test_calibrate.py",
}  # fmt: skip

# the same of transfer, of files whose tests are not those of their name alone: `teachers/bert` is teachers/test_bert.py
TRANSFER = {
    "attention_weights": "ssm_start ssm_sources pairs",
    "axes": "importance inheritance bad_input students ssm_sources",
    "counterparts": "students survey pairs",
    "differences": "survey students pairs",
    "importance": "importance importance_runs",
    "inheritance": "inheritance bad_input students survey ssm_start",
    "linear_attention": "ssm_start ssm_sources",
    "plan": "bad_input inheritance students",
    "refusals": "bad_input inheritance sharded",
    "report": "inheritance students",
    "resize": "resize students",
    "select": "inheritance importance bad_input students",
    "source": "bad_input streaming inheritance",
    "ssm_start": "ssm_start pairs",
    "student": "students inheritance survey pairs",
    "students": "students ssm_sources pairs survey",
    "tensor_checks": "bad_input streaming sharded",
    "write": "inheritance bad_input resize students",
    "closed_form/fit_report": "closed_form/layerwise",
    "closed_form/layer_fit": "closed_form/layerwise closed_form/teacher_forced",
    "closed_form/least_squares": "closed_form/least_squares closed_form/layerwise",
    "closed_form/lockstep": "closed_form/layerwise",
    "closed_form/spread": "closed_form/layerwise closed_form/projected",
    "closed_form/streams": "closed_form/layerwise closed_form/projected",
    "teachers/__init__": "teachers/translate students teachers/own",
    "teachers/architecture": "teachers/translate students bad_input teachers/vit teachers/own",
    "teachers/beit": "teachers/beit teachers/image_towers teachers/image_files",
    "teachers/bert": "teachers/bert teachers/translate",
    "teachers/bert_kin": "teachers/bert_kin survey",
    "teachers/checkpoint": "streaming teachers/encoder_files teachers/image_files students",
    "teachers/decoder": "teachers/llama teachers/gemma teachers/language_parts survey",
    "teachers/encoders": "teachers/bert teachers/bert_kin teachers/rotary_encoders survey teachers/encoder_files",
    "teachers/facts": "teachers/llama survey pairs",
    "teachers/family": "teachers/translate ../architecture",
    "teachers/gemma": "teachers/gemma survey",
    "teachers/gpt": "teachers/gpt survey",
    "teachers/images": "teachers/vit teachers/image_towers teachers/image_survey teachers/dino",
    "teachers/layer_norm": "teachers/layer_norm survey teachers/language_parts",
    "teachers/llama": "teachers/llama teachers/language_parts survey",
    "teachers/mamba": "ssm_sources",
    "teachers/modules": "teachers/translate teachers/text_towers teachers/image_towers students teachers/timm",
    "teachers/opt": "teachers/opt survey",
    "teachers/own": "teachers/own pairs",
    "teachers/rotary_encoders": "teachers/rotary_encoders survey",
    "teachers/terms": "teachers/terms teachers/translate teachers/opt",
    "teachers/translated": "teachers/translate students survey teachers/rotary_encoders teachers/llama"
    " teachers/image_towers",
    "teachers/unsupported": "survey teachers/refused_encoders",
    "teachers/vit": "teachers/vit teachers/translate students teachers/image_files teachers/image_towers",
}  # fmt: skip
NAMED |= {
    f"transfer/{name}": " ".join(
        str(Path("transfer", test).parent / f"test_{Path(test).name}.py") for test in tests.split()
    )
    for name, tests in TRANSFER.items()
}


def places(source: str) -> Iterator[tuple[int, int, str, str]]:
    """List (start, end, new text, old text) of every change, in characters; skip annotations and texts."""
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def at(node: ast.AST, end: bool = False) -> int:
        line, column = (node.end_lineno, node.end_col_offset) if end else (node.lineno, node.col_offset)  # type: ignore[attr-defined]
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    skipped = {id(part) for node in ast.walk(tree) for note in _annotations(node) for part in ast.walk(note)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for left, sign, right in _operators(node):
            begin, text = at(left, end=True), source[at(left, end=True) : at(right)]
            if text.strip("() \n\t") == sign:
                begin += text.index(sign)
                yield begin, begin + len(sign), OPERATORS[sign], sign
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            new = str(not node.value) if isinstance(node.value, bool) else str(node.value + 1)
            yield at(node), at(node, end=True), new, ast.unparse(node)


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


def tests_of(path: Path) -> list[str]:
    """Test files of a source file: those of its name in its folder's mirror, those of `NAMED`, or the whole mirror."""
    name = str(path.relative_to(ROOT / "transmamba").with_suffix(""))
    for known in (name, str(Path(name).parent)):
        if known in NAMED:
            return [os.path.normpath(f"tests/{test}") for test in NAMED[known].split()]
    own = ROOT / "tests" / Path(name).parent / f"test_{path.stem}.py"
    return [str((own if own.exists() else own.parent).relative_to(ROOT))]


def outcome(copy: Path, tests: list[str], limit: int) -> str:
    """Report the outcome of a change; one that hangs the tests is reported apart, as a busy machine may hang any."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    try:
        code = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return "too slow"
    return "caught" if code else "survived"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="folders or files of transmamba: ops distill transfer/write.py")
    parser.add_argument("--count", type=int, default=10, help="changes per file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=600, help="seconds for the tests of one change")
    args = parser.parse_args()
    files = [
        f
        for what in args.what
        for f in sorted((ROOT / "transmamba").glob(f"{what}/**/*.py" if "." not in what else what))
    ]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        for path in files:
            # kernels of Triton and C++ have tests of their own kind
            if "triton" in str(path) or "native" in str(path) or path.stem == "cuda":
                continue
            source, target = path.read_text(), copy / path.relative_to(ROOT)
            found = sorted(places(source))
            drawn = random.Random(f"{args.seed} {path.name}")
            for begin, end, new, old in drawn.sample(found, min(args.count, len(found))):
                target.write_text(source[:begin] + new + source[end:])
                found_out = outcome(copy, tests_of(path), args.limit)
                counts[found_out] += 1
                where = f"{path.relative_to(ROOT)}:{source[:begin].count(chr(10)) + 1}"
                line = source.splitlines()[source[:begin].count("\n")].strip()
                print(f"{found_out:8} {where} {old} -> {new}   {line}", flush=True)
            target.write_text(source)
    print(f"{counts['caught']} of {counts.total()} changes caught, {counts['too slow']} too slow to tell")


if __name__ == "__main__":
    main()
