"""Plain English, as far as a regular expression can check it: docstrings, comments, messages, pages and notebooks."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest import MonkeyPatch

ROOT = Path(__file__).parent.parent
# The docstring of a check is the property that it checks, printed where it fails.
PROPERTIES = frozenset({ROOT / "transmamba/testing.py"})

# A function's summary opens with one of these, so that it states an action. Add a verb here if you need another one.
VERBS = frozenset(
    """
    Accept Adapt Add Align Allocate Answer Apply Assemble Assign Attend Average Bind Bring Broadcast Build Cache
    Calibrate Call Cast Check Choose Clear Collect Combine Compare Compile Complete Compute Concatenate Configure
    Continue Convert Copy Count Create Crop Cut Decide Declare Decode Decorate Delete Derive Describe Detach Detect
    Disable Divide Draw Drop Embed Enable Encode Estimate Evaluate Expand Expect Explain Export Extend Extract Fill
    Find Finish Fit Flatten Fold Forget Format Freeze Gate Gather Generate Get Give Group Guess Handle Hold Infer
    Inherit Initialise Insert Interleave Interpolate Invert Iterate Join Keep Label Launch Lay Leave Let Limit Link
    List Load Look Make Map Mark Mask Match Measure Merge Mix Move Multiply Name Normalise Open Order Pack Pad Parse
    Pass Permute Pick Place Plan Pool Predict Prefix Prepare Print Project Pull Put Quote Raise Rank Read Record
    Redraw Reduce Refuse Register Reject Remember Remove Rename Reorder Repeat Replace Report Reset Reshape Resize
    Resolve Restore Return Reverse Rotate Round Run Sample Save Scale Scan Score Select Serialise Set Shift Show
    Skip Solve Sort Split Spread Square Stack Start Step Stop Store Stream Subclone Subtract Sum Suspend Switch Take
    Tap Test Tie Time Tokenise Trace Train Translate Transpose Truncate Turn Undo Unfreeze Unpack Update Use Validate
    Verify Wait Walk Warn Weigh Weight Wrap Write Yield Zero
    """.split()  # noqa: SIM905 (one string reads better than 200 of them)
)
QUESTION_WORD = re.compile(r"(?:What|Who|Whom|Whose|How|Where|Which|Why|When)\b")

THING = r"(?:that|which|it|they|nothing|code|names?|files?|pages?|tables?|reports?|errors?|messages?|models?|X)"
# (pattern, instead): searched in each sentence that is not a question
PHRASES = (
    (r"\bwhat(?! to | if )\b", "name the thing instead of `what ...`"),
    (r"\banew\b", "again, or initialise"),
    (r"(?<!\bthere )\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|\w+er\b)\w", "is not a, or has no"),
    (r"\bfor who\b|(?:^|[.;:(] *)who (?!\w+ \w+ \w+ .*\?)", "for those who, or name the reader"),
    (r"\b(?:says|tells|speaks|sees|objects to)\b", "things do not speak or see: states, shows, contains"),
    (THING + r" (?:say|tell|ask|asks|speak|see|object to)\b", "things do not speak or see"),
)


def prose_files() -> list[Path]:
    """Return the library's modules, the pages and the notebooks' sources."""
    found = [*ROOT.glob("transmamba/**/*.py"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.py")]
    return sorted(found)


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, int, str]]:
    """Yield each docstring with its owner and line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node, node.body[0].lineno, text


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the docstrings and every other string of at least four words, with {} for each value put into it."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node) if part is not node}
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            if len(node.value.split()) >= 4:
                yield node.lineno, node.value


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield each run of comment lines as one text."""
    start, lines = -2, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if lines and token.start[0] != start + len(lines):
                yield start, "\n".join(lines)
                lines = []
            start = start if lines else token.start[0]
            lines.append(token.string.lstrip("#").strip())
    if lines:
        yield start, "\n".join(lines)


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs, headings, list items and table cells of a Markdown page, without its code."""
    text = re.sub(r"^ *```.*?^ *```", lambda m: "\n" * m[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    line = 1
    for block in re.split(r"(\n\s*\n|\n(?=\s*(?:[-*|]|#+|\d+\.) )|\|)", text):
        yield line + len(block) - len(block.lstrip("\n")), block
        line += block.count("\n")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield all prose of a file as (line, text)."""
    source = path.read_text()
    if path.suffix == ".md":
        yield from paragraphs(source)
        return
    # strings of a notebook are its data, such as questions about pictures
    messages = () if path.is_relative_to(ROOT / "notebooks") else strings(ast.parse(source))
    for line, text in [*messages, *comments(source)]:
        # Args and Raises, cells and paragraphs are texts of their own
        yield from ((line + at - 1, part) for at, part in paragraphs(re.sub(r"^ *>>> .*\n.*", "", text, flags=re.M)))


def sentences(text: str) -> Iterator[str]:
    """Yield the statements of a text: headings and questions are left out, code becomes X."""
    if text.lstrip().startswith("#"):
        return
    text = re.sub(r"`[^`]*`|\{\}", "X", re.sub(r"``+.*?``+|\]\([^)]*\)", "X", text))
    for sentence in re.split(r"(?<=[.!?:])\s+", " ".join(text.split())):
        if not sentence.rstrip('")*').endswith("?"):
            yield sentence


def offences(path: Path) -> list[str]:
    """List the lines of a file that break a rule, each with the words to use instead."""
    found = []
    for line, text in texts(path):
        for sentence in sentences(text):
            for pattern, instead in PHRASES:
                if match := re.search(pattern, sentence, re.IGNORECASE):
                    around = sentence[max(0, match.start() - 30) : match.end() + 30]
                    found.append(f"{path.relative_to(ROOT)}:{line}: ...{around}... ({instead})")
    return found


def is_property(node: ast.AST) -> bool:
    """Check for a decorator such as `@property`: its summary names a value, as an attribute's would."""
    return any("property" in ast.unparse(each) for each in getattr(node, "decorator_list", ()))


def bad_summaries(path: Path) -> list[str]:
    """List the docstrings of a module whose summary opens with a question word, or is not an action."""
    found = []
    verbless = path in PROPERTIES
    for node, line, text in docstrings(ast.parse(path.read_text())):
        first = text.split()[0].rstrip(",.:;")
        if QUESTION_WORD.match(text):
            found.append(f"{path.relative_to(ROOT)}:{line}: opens with {first}: {text.splitlines()[0]}")
        elif isinstance(node, ast.FunctionDef) and not (verbless or is_property(node) or first in VERBS):
            found.append(f"{path.relative_to(ROOT)}:{line}: {first!r} is not in VERBS: {text.splitlines()[0]}")
    return found


FILES = prose_files()
SOURCES = [path for path in FILES if path.is_relative_to(ROOT / "transmamba")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_phrases(path: Path) -> None:
    assert "\n".join(offences(path)) == ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_summaries_state_an_action(path: Path) -> None:
    assert "\n".join(bad_summaries(path)) == ""


BAD = [
    "Return what the encoder gives.",
    "Draw the initial values anew.",
    "An entry is no tensor.",
    "The settings are for who has both.",
    "The report says so.",
    "Configurations that say gelu mean its tanh approximation.",
    "A student that sees `n` images.",
]
GOOD = [
    "There is no such file.",
    "It is no longer there, and no worse.",
    "The error states what to do.",
    "What is wrong?",
    "## What a backbone shows",
    "`report says so` is quoted.",
    "Whatever follows, and somewhat less.",
]


@pytest.mark.parametrize(("text", "bad"), [*((text, True) for text in BAD), *((text, False) for text in GOOD)])
def test_the_phrases_catch_what_they_should(text: str, bad: bool, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_prose.ROOT", tmp_path)
    (page := tmp_path / "page.md").write_text(text)
    assert bool(offences(page)) == bad
    (module := tmp_path / "module.py").write_text(f'def f():\n    # {text}\n    raise ValueError(f"{text} {{0}}")\n')
    assert len(offences(module)) == 2 * bad


@pytest.mark.parametrize(
    ("summary", "message"),
    [("What it is.", "opens with What"), ("The sum.", "'The' is not in VERBS"), ("Return the sum.", "")],
)
def test_summaries_are_judged_by_their_first_word(
    summary: str, message: str, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_prose.ROOT", tmp_path)
    docstring = f'"""{summary}"""'
    (module := tmp_path / "module.py").write_text(
        f"def f():\n    {docstring}\n\n@property\ndef g():\n    {docstring}\n"
    )
    found = bad_summaries(module)
    assert found == [] if not message else message in found[0] and len(found) == (2 if summary[0] == "W" else 1)
