"""Pictures that are drawn from the records show them as they are."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def front(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "mkdocs"))
    for name in ("front", "svg"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import front

    return front


def test_the_curves_of_the_front_page_are_those_of_the_records(front):
    deleted, solved, wide, best = front.rises()
    assert [x for x, _ in deleted] == [x for x, _ in solved] == [0, 1, 2, 4, 8, 15, 22, 26, 30]
    assert [x for x, _ in wide] == [0, 4, 8, 15, 22, 30] and [x for x, _ in best] == [15]
    records = front.RECORDS.read_text()
    for x, y in (*deleted[1:], *solved[1:], *wide[1:], *best):
        assert f"{y:+.3f}" in records, x
    assert (DOCS / "pictures" / "language_model.svg").read_text() == str(front.language_model())


def test_a_record_without_a_figure_is_an_error(front, tmp_path, monkeypatch):
    page = tmp_path / "results.md"
    page.write_text(
        front.RECORDS.read_text().replace(
            "| then the closed form with books | **+0.301", "| then the closed form with books | -"
        )
    )
    monkeypatch.setattr(front, "RECORDS", page)
    with pytest.raises(ValueError, match=r"has no figure to draw: adapt front.rises to its tables"):
        front.rises()
