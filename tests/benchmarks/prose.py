"""English that a Debian machine has: a short piece of each of many documents, so that the text is varied."""

import gzip
import random
import re
from pathlib import Path

FOLDERS = {
    "/usr/share/doc": "*/**/*.md",
    "/usr/share/cmake-3.25/Help": "**/*.rst",
    "/usr/share/perl": "**/*.pod",
    "/usr/share/man": "man[1578]/*.gz",
}
GRAM = 12
MACRO = re.compile(r"[.'](?:SH|SS|BR|BI|IR|IP|TP|Sh|B|I)\b\s*(.*)")
ESCAPES = ((r"\\f(?:\(..|\[\w*\]|.)|\\[&c|^]|\\s[-+]?\d|\\\*\(..", ""), (r"\\\((?:aq|cq|oq)", "'"), (r"\\-", "-"))


def manual_page(path):
    """Return the text of a manual page without most of its markup."""
    lines = []
    for line in gzip.open(path, "rt", errors="replace").read().splitlines():
        found = MACRO.match(line)
        if found or not line.startswith((".", "'")):
            lines.append(found[1].replace('"', "") if found else line)
    text = "\n".join(lines)
    for pattern, by in ESCAPES:
        text = re.sub(pattern, by, text)
    return re.sub(r"\\\(..|\\\[\w+\]|\\", "", text)


def documents():
    """Return the paths of all documents; one program's sixteen thousand manual pages are left out."""
    found = [path for folder, glob in FOLDERS.items() for path in sorted(Path(folder).glob(glob))]
    return [path for path in found if not path.name.startswith("gcloud") and path.is_file()]


def grams(texts):
    """Return every run of `GRAM` tokens of some lists of tokens."""
    return {tuple(text[i : i + GRAM]) for text in texts for i in range(len(text) - GRAM + 1)}


def apart(row, held_out):
    """Return whether a list of tokens shares no run with those that `grams` found."""
    return held_out.isdisjoint(grams([row]))


def rows(tokenizer, count, length, without):
    """Return `length` tokens of the middle of each of `count` documents, as lists.

    Rows that share a run of `GRAM` tokens with the texts `without`, lists of tokens, are dropped.
    """
    held_out, found = grams(without), []
    for path in random.Random(0).sample(documents(), 4 * count):
        text = manual_page(path) if path.suffix == ".gz" else path.read_text("utf8", errors="replace")
        middle = max(0, len(text) // 2 - 3 * length)
        row = tokenizer(text[middle : middle + 6 * length])["input_ids"][:length]
        if len(row) == length and apart(row, held_out):
            found.append(row)
        if len(found) == count:
            return found
    raise ValueError(f"only {len(found)} of {count} rows: this machine has too few documents")
