"""The tables of `bench_convert`, printed from its file of results as docs/results.md has them."""

from statistics import mean

from tests.benchmarks.conversion_rows import ALONE, CHAINS, CHOICES, COUNTS, DRAWN, seeded

PLACES = ("gpl", "topics")  # elsewhere, then at home
METHODS = {
    "deleted": {(n, 0): (f"delete {n}", None) for n in COUNTS},
    "`AttentionInit`": {(n, 0): (f"{n} attention start", None) for n in COUNTS},
    "the same, closed form": {(n, 0): (f"closed {n} attention start", None) for n in COUNTS},
    "closed form": {(n, seed): (seeded(f"closed {n}", seed), None) for n, seed in DRAWN},
    "16 forced steps": {key: (CHAINS[key], 0) for key in DRAWN},
    "then closed form": {key: (CHAINS[key], 1) for key in DRAWN},
    "then 8 steps end to end": {key: (CHAINS[key], 2) for key in DRAWN},
    "steps alone, same time": {key: (ALONE[key], None) for key in DRAWN},
}


def tables(done):
    """Print everything: each row, the worth of each attention, both tables by number of layers."""
    start = done["teacher"]
    print("| | elsewhere (at home) | CPU s |\n| --- | --: | --: |")
    for name, line in done.items():
        if "topics" in line:
            print(f"| {name} | {cell([line], start)} | {line.get('seconds', 0):.0f} |")
    if "sensitivity" in done:
        line = done["sensitivity"]
        print(", ".join(f"{layer} {loss - line['base']:+.3f}" for layer, loss in line["losses"].items()))
    by_count(done, start)
    by_choice(done, start)


def cell(lines, start):
    """Return the rise elsewhere and at home; of several seeds the mean and the largest distance from it."""
    parts = []
    for place in PLACES:
        rises = [line[place] - start[place] for line in lines]
        spread = max(abs(rise - mean(rises)) for rise in rises)
        parts.append(f"{mean(rises):+.3f}" + (f" ± {spread:.3f}" if len(rises) > 1 else ""))
    return f"{parts[0]} ({parts[1]})"


def found(done, names):
    """Return the lines, or those of a stage, that have been run."""
    lines = [(done[name], stage) for name, stage in names if name in done]
    return [line if stage is None else line["stages"][stage] for line, stage in lines]


def by_count(done, start):
    """Print the rise of each method for each number of layers, then the seconds; a dash was not run."""
    for title in ("attentions replaced", "CPU seconds"):
        print(f"\n| {title} | {' | '.join(METHODS)} |\n| --: |{' --: |' * len(METHODS)}")
        for n in COUNTS:
            rows = [found(done, [row for key, row in names.items() if key[0] == n]) for names in METHODS.values()]
            if title == "CPU seconds":
                cells = [f"{mean(s):.0f}" if (s := [x["seconds"] for x in r if "seconds" in x]) else "-" for r in rows]
            else:
                cells = [cell(row, start) if row else "-" for row in rows]
            print(f"| {n} | {' | '.join(cells)} |")


def by_choice(done, start):
    """Print the rise by the choice of layers, deleted and in closed form."""
    choices = {"cheapest": "", "spread evenly": " uniform", "last": " last"}
    heads = [f"{way}: {choice}" for way in ("deleted", "closed form") for choice in choices]
    print(f"\n| attentions replaced | {' | '.join(heads)} |\n| --: |{' --: |' * len(heads)}")
    for n in dict.fromkeys(count for count, _ in CHOICES):
        names = [f"{way} {n}{by}" for way in ("delete", "closed") for by in choices.values()]
        cells = [cell([done[name]], start) if name in done else "-" for name in names]
        print(f"| {n} | {' | '.join(cells)} |")
