"""The glossary has one row per word, and its questions lead to files and names that exist."""

import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS, QUESTIONS = (ROOT / "docs" / "glossary.md").read_text().split("## Twenty questions")


def rows(text):
    """Return the cells of the rows of a table, its head left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_word_has_one_row():
    words = [word for word, *_ in rows(WORDS)]
    assert words == sorted(set(words))
    assert all(len(row) == 3 and row[1] for row in rows(WORDS))


def test_there_are_twenty_questions():
    assert len(rows(QUESTIONS)) == 20
    assert all(question.endswith("?") for question, _ in rows(QUESTIONS))


def files(place):
    """List the files of a path, which may have wildcards, or those of the module or object of a dotted name."""
    if place.startswith("transmamba."):
        return [pkgutil.resolve_name(place)]
    return [path for path in ROOT.glob(place) if path.is_file()]


@pytest.mark.parametrize(
    "place", [place for _, places in rows(QUESTIONS) for place in re.findall(r"`([^`]+)`", places)]
)
def test_places_exist(place):
    assert files(place)


def test_a_place_that_is_gone_is_noticed():
    assert not files("transmamba/ops/nowhere.py")
    with pytest.raises(AttributeError):
        files("transmamba.ops.nowhere")
