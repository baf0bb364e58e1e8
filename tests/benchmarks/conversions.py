"""Delete or replace attentions, solve, take steps and measure, for the runs of `bench_convert`."""

import time
from functools import partial
from itertools import cycle, islice

import torch

from tests.benchmarks.hybrids import started
from tests.benchmarks.stages import divergence, forced, gradient_steps, layer_steps
from transmamba import transfer
from transmamba.nn import MambaMixer

ALL = range(30)


def base(bench):
    """Measure the teacher."""
    return {**bench.scores(bench.teacher), "text": bench.text(bench.teacher)}


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


def solve(bench, student, layers, topics=24, vim=24, varied=0, books=0, **fit):
    """Solve the readouts."""
    batches = bench.batches(topics, vim, varied, books)
    return transfer.fit_layers(bench.teacher, student, batches, layers=layers, progress=False, **fit)


def closed_form(bench, count, fit=None, keep=None, speak=False, **start):
    """Replace attention by mixers of random start, solve their readouts; write the student to a file, or let it write.

    Args:
        bench: the teacher and the texts.
        count: number of attentions.
        fit: arguments of `solve`.
        keep: name of a file for `stages` to begin from.
        speak: add some text of the student to the results.
        start: arguments of `started`.
    """
    student, layers = started(bench, count, **start)
    begin = time.process_time()
    report = solve(bench, student, layers, **(fit or {}))
    seconds = time.process_time() - begin
    if keep:
        mixers = {layer: student.blocks[layer].mixer.state_dict() for layer in layers}
        torch.save({"mixers": mixers, "seconds": seconds}, bench.folder / keep)
    errors = {row.layer: [round(x, 4) for x in (row.r2, row.stream_error, row.token_error)] for row in report.rows}
    text = {"text": bench.text(student)} if speak else {}
    return {**bench.scores(student), "seconds": seconds, "layers": layers, "errors": errors, **text}


def unsolved(bench, count, **start):
    """Replace attention by mixers and leave them at their start."""
    student, layers = started(bench, count, **start)
    return {**bench.scores(student), "layers": layers}


def stages(
    bench,
    count,
    plan,
    steps,
    rate=None,
    texts=(256, 256, 0),
    fit=None,
    rounds=40,
    every=1,
    kept="",
    speak=False,
    **start,
):
    """Follow a plan, a letter for each stage; measure after each.

    s solves the readouts, l solves and trains layer after layer, on the texts of `fit`; o takes the solved student of
    the file `kept`; f takes teacher-forced steps, k steps on the end-to-end divergence, through rows of `texts` by
    turns, four at a time, and again from the first when all have been read. `steps` and `rate` are those of each
    letter (rates: 1e-3 unless given).
    """
    student, layers = started(bench, count, **start)
    student.requires_grad_(False)
    losses = {
        "k": partial(divergence, bench.teacher, student, every=every),
        "f": partial(forced, bench.teacher, student, layers),
    }
    found, seconds, fit, rate = [], 0.0, fit or {}, {"f": 1e-3, "k": 1e-3, "l": 1e-3, **(rate or {})}
    batches = cycle(bench.batches(*texts, size=4))
    for stage in plan:
        begin = time.process_time()
        if stage == "s":
            solve(bench, student, layers, **fit)
        elif stage == "l":
            rows = bench.batches(*(fit.get(name, 0) for name in ("topics", "vim", "varied", "books")))
            layer_steps(bench.teacher, student, layers, rows, rounds, rate[stage], ridge=fit["ridge"])
        elif stage == "o":
            seconds += read_kept(student, bench.folder / kept)
        else:
            gradient_steps(student, layers, list(islice(batches, steps[stage])), losses[stage], rate[stage])
        seconds += time.process_time() - begin
        found.append({"stage": stage, "seconds": seconds, **bench.scores(student)})
        print(found[-1], flush=True)
    text = {"text": bench.text(student.eval())} if speak else {}
    return {**found[-1], "layers": layers, "stages": found, **text}


def read_kept(student, file):
    """Load the mixers that `closed_form` wrote; return the seconds that it took."""
    kept = torch.load(file)
    for layer, state in kept["mixers"].items():
        student.blocks[layer].mixer.load_state_dict(state)
    return kept["seconds"]
