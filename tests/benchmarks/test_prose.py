import gzip

import pytest

from tests.benchmarks import prose


class Letters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text]}


def page(path, text):
    with gzip.open(path, "wt") as file:
        file.write(text)
    return path


def test_a_manual_page_keeps_its_words_and_loses_its_markup(tmp_path):
    lines = (
        '.\\" a comment',
        ".TH CAT 1",
        ".SH NAME",
        "cat \\- join \\fIfiles\\fR",
        ".BR tac (1)",
        ".nf",
        "it\\(aqs done\\&",
    )
    assert prose.manual_page(page(tmp_path / "a.gz", "\n".join(lines))) == "NAME\ncat - join files\ntac (1)\nit's done"


def test_rows_come_from_the_middle_and_what_is_held_out_is_dropped(tmp_path, monkeypatch):
    texts = ["".join(map(chr, range(first, first + 400))) for first in (1000, 5000)] + ["short"]
    paths = [tmp_path / f"{i}.md" for i in range(3)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, "utf8")
    monkeypatch.setattr(prose, "documents", lambda: paths * 4)
    held_out = list(range(5090, 5102))  # 12 of the tokens 80 to 119 of the second text
    assert prose.rows(Letters(), 2, 40, [held_out]) == [list(range(1080, 1120))] * 2
    everything = [Letters()(text)["input_ids"] for text in texts]
    with pytest.raises(ValueError, match="only 0 of 3 rows: this machine has too few documents"):
        prose.rows(Letters(), 3, 40, everything)
