import gzip
import zlib

import pytest

from tests.benchmarks import books


def letters(text):
    return {"input_ids": [ord(letter) for letter in text]}


def test_zlib_streams_are_found_between_other_bytes():
    parts = [b"one x of them" * 5, b"another" * 9]
    data = b"x\x9cno" + zlib.compress(parts[0]) + b"xx" + zlib.compress(parts[1])
    assert books.inflated(data) == b"".join(parts)


def test_the_text_of_each_kind_of_file(tmp_path):
    page = "<html><head>\n<title>t</title></head><p>A  &amp; B\n \n\n<b>C</b></p></html>"
    strings = b"".join(b"\0\4\0\t\0\0\0" + bytes([len(s)]) + s for s in (b"a line that is long enough", b"short"))
    files = {
        "page.html": (page.encode(), "\n\nA & B\n\nC"),
        "words.dict.dz": (gzip.compress(b"word\n   meaning"), "word\n   meaning"),
        "Rdata.rdb": (zlib.compress(strings), "a line that is long enough"),
        "ot.bzz": (zlib.compress(b"<w lemma='1'>In</w> <w>the</w><note>no</note><div sID='2'/>And"), "In the\n\nAnd"),
        "quotes.u8": (b"To be\n%\nor not", "To be\n\nor not"),
    }
    for name, (data, text) in files.items():
        (tmp_path / name).write_bytes(data)
        assert books.text_of(tmp_path / name) == text, name


def test_rows_come_from_all_sources_by_turns_without_what_is_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(books, "SOURCES", {"low": "a.u8", "high": "b.u8"})
    lines = [[chr(first + 20 * line + i) for i in range(20)] for first in (500, 5000) for line in range(40)]
    lines[44][3:10] = "Licence"
    for name, part in (("a.u8", lines[:40]), ("b.u8", lines[40:])):
        (tmp_path / name).write_text("\n".join("".join(line) for line in part), "utf8")
    held_out = [list(range(500 + 20 * 20, 500 + 20 * 30))]  # half of the first file's second half
    rows = books.rows(tmp_path, letters, 4, 12, held_out)
    assert [min(token for token in row if token != 10) < 5000 for row in rows] == [True, False, True, False]
    assert all(len(row) == 12 and not set(row) & {ord("L")} for row in rows)
    assert not any(set(row) >= set(held_out[0][i : i + 12]) for row in rows for i in range(189))
    with pytest.raises(ValueError, match=r"only \d+ of 40 rows of low in .*: unpack that package there"):
        books.rows(tmp_path, letters, 80, 12, held_out)
