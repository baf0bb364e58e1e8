"""English books, essays, dictionaries and quotations from Debian packages, for text that is more varied than manuals.

    apt-get download NAME...            # the packages of SOURCES, below
    for file in *.deb; do dpkg -x $file UNPACKED; done
    python -m tests.benchmarks.bench_convert books FOLDER UNPACKED

No licence is among them, and every row that speaks of a licence is dropped, because a licence is the text on which
nothing may be fitted.
"""

import gzip
import html
import random
import re
import zlib

from tests.benchmarks.prose import apart, grams

SOURCES = {
    "anarchism": "usr/share/doc/anarchism/html/*.html",
    "debian-handbook": "usr/share/doc/debian-handbook/html/en-US/*.html",
    "cfi-en": "usr/share/doc/cfi-en/html/ch*.htm",
    "gnucash-docs": "usr/share/doc/gnucash-docs/gnucash-guide-en/*.html",
    "dict-foldoc": "usr/share/dictd/foldoc.dict.dz",
    "dict-jargon": "usr/share/dictd/jargon.dict.dz",
    "fortunes": "usr/share/games/fortunes/*.u8",
    "sword-text-web": "usr/share/sword/modules/texts/ztext/*/*.bzz",
    "r-cran-janeaustenr": "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
}
PARAGRAPH = re.compile(r"<(?:p|div|chapter)\b[^<>]*>")
UNWANTED = re.compile(r"(?s)<(head|script|style|note)\b.*?</\1>|<[^<>]*>")
LICENCE = re.compile("licen[cs]e", re.IGNORECASE)


def inflated(data):
    """Return the bytes of all zlib streams within some data."""
    found, at = [], 0
    while (at := data.find(b"x", at)) >= 0:
        stream = zlib.decompressobj()
        try:
            part = stream.decompress(data[at:])
        except zlib.error:
            part = b""
        found.append(part)
        at = len(data) - len(stream.unused_data) if part and stream.eof else at + 1
    return b"".join(found)


def text_of(path):
    """Return the text of a page, a dictionary, a module of SWORD, the strings of an R package, or any other file."""
    data = path.read_bytes()
    if path.suffix == ".dz":
        return gzip.decompress(data).decode("utf8", "replace")
    if path.suffix == ".rdb":
        return "\n".join(line.decode() for line in re.findall(rb"(?s)\0\0\0.([ -~]{20,})", inflated(data)))
    text = (inflated(data) if path.suffix == ".bzz" else data).decode("utf8", "replace")
    if path.suffix == ".u8":
        return text.replace("\n%\n", "\n\n")
    text = re.sub(r"[ \t]+", " ", html.unescape(UNWANTED.sub("", PARAGRAPH.sub("\n\n", text))))
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text)


def rows(folder, tokenizer, count, length, without):
    """Return `count` rows of `length` tokens, equally many of each source, from all over it, by turns."""
    held_out, found = grams(without), []
    for name, glob in SOURCES.items():
        text = "\n\n".join(text_of(path) for path in sorted(folder.glob(glob)))
        each = -(-count // len(SOURCES))
        begins = sorted({text.find("\n", i * len(text) // (2 * each)) + 1 for i in range(2 * each)})
        pieces = [text[at : at + 6 * length] for at in begins]
        tokens = (tokenizer(piece)["input_ids"][:length] for piece in pieces if not LICENCE.search(piece))
        kept = [row for row in tokens if len(row) == length and apart(row, held_out)]
        if len(kept) < each:
            raise ValueError(f"only {len(kept)} of {each} rows of {name} in {folder}: unpack that package there")
        found.append(random.Random(0).sample(kept, each))
    return [row for turn in zip(*found, strict=True) for row in turn][:count]
