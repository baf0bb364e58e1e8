"""The runs of `bench_convert` by name: the attentions to replace, their replacements, and the fits."""

from functools import partial

from tests.benchmarks.conversions import base, closed_form, delete, delete_each, solve_each, stages, unsolved
from tests.benchmarks.hybrids import decode


def in_the_same_time(bench, chain, count, seed):
    """Take end-to-end steps alone, as many as fit into the seconds of a row that ends with some."""
    *_, before, after = bench.done()[chain]["stages"]
    each = (after["seconds"] - before["seconds"]) / SHORT["steps"]["k"]
    steps = round(after["seconds"] / each)
    return {"steps": steps, **stages(bench, count, "k", {"k": steps}, every=4, seed=seed)}


def seeded(name, seed):
    """Return the name of a row with a seed; 0 is not named."""
    return f"{name} seed {seed}" if seed else name


HALF, ALL_OF_THEM = partial(closed_form, count=15), partial(closed_form, count=30)
COUNTS = (1, 2, 4, 8, 15, 22, 26, 30)
CHOICES = [(count, by) for by in ("last", "uniform") for count in COUNTS[:-1]]  # 30 of 30 are the same in any way
DRAWN = [(n, seed) for n in COUNTS for seed in (range(3) if n in (4, 15, 30) else range(1))]  # numbers and seeds
WIDE = {"options": {"expand": 4}, "start": "values"}
MIX = {"topics": 64, "vim": 64, "varied": 64, "ridge": 1e-2}
BOOKS = {"topics": 32, "vim": 32, "varied": 32, "books": 96, "ridge": 1e-2}
ALL_TEXTS = {"texts": (200, 200, 200, 200), "every": 4}
BROAD = {"topics": 16, "vim": 16, "varied": 64, "ridge": 1e-2}
COST = {"by": "each solved"}
FROM_3 = {**COST, "first": 3}  # the first three attentions stay
LONG = {"texts": (170, 170, 170), "every": 4}
RIDGE = {"ridge": 1e-2}
CURVES = {
    **{f"delete {n}": partial(delete, count=n) for n in COUNTS},
    **{f"delete {n} {by}": partial(delete, count=n, by=by) for n, by in CHOICES},
    **{f"delete {n} by its cost from 3 on": partial(delete, count=n, **FROM_3) for n in (4, 8, 15, 22)},
    **{f"closed {n}": partial(closed_form, count=n) for n in COUNTS},
    **{f"closed {n} {by}": partial(closed_form, count=n, by=by) for n, by in CHOICES},
    **{seeded(f"closed {n}", seed): partial(closed_form, count=n, seed=seed) for n, seed in DRAWN if seed},
    **{
        f"closed {n} by its cost from 3 on, wide": partial(closed_form, count=n, **FROM_3, **WIDE, fit=RIDGE)
        for n in (1, 2, 4, 8, 15, 22, 26)
    },
}
LARGE = {
    "closed 15, wide": partial(HALF, **WIDE, fit=RIDGE),
    "closed 30, wide": partial(ALL_OF_THEM, **WIDE, fit=RIDGE),
    "closed 15, wide, 49k tokens": partial(HALF, **WIDE, fit=MIX),
    "closed 30, wide, 49k tokens": partial(ALL_OF_THEM, **WIDE, fit=MIX, keep="all.pt", speak=True),
    "closed 15 by its cost from 3 on, wide, 49k tokens": partial(
        HALF, **FROM_3, **WIDE, fit=MIX, keep="half.pt", speak=True
    ),
    **{
        f"closed 15 by its cost from 3 on, wide, seed {seed}": partial(HALF, **FROM_3, **WIDE, fit=RIDGE, seed=seed)
        for seed in (1, 2)
    },
    **{f"closed 30, wide, seed {seed}": partial(ALL_OF_THEM, **WIDE, fit=RIDGE, seed=seed) for seed in (1, 2)},
    "closed 15, wide, no values": partial(HALF, options={"expand": 4}, fit=RIDGE),
    "closed 15 by its cost": partial(HALF, **COST, fit=RIDGE),
    "closed 15 by its cost from 3 on": partial(HALF, **FROM_3, fit=RIDGE),
    "closed 15 by its cost, wide": partial(HALF, **COST, **WIDE, fit=RIDGE),
    "closed 15 by its cost elsewhere, wide": partial(HALF, by="each solved, elsewhere", **WIDE, fit=RIDGE),
    "closed 15 by its cost from 3 on, wide, varied": partial(HALF, **FROM_3, **WIDE, fit=BROAD),
}
OPTIONS = {
    "closed 15 relative": partial(HALF, fit={"weighting": "relative"}),
    "closed 15 own": partial(HALF, fit={"target": "own"}),
    "closed 15 ridge 1e-2": partial(HALF, fit=RIDGE),
    "closed 15 ridge 1e-1": partial(HALF, fit={"ridge": 1e-1}),
    "closed 15 ridge 1e-4": partial(HALF, fit={"ridge": 1e-4}),
    "closed 30 ridge 1e-2": partial(ALL_OF_THEM, fit=RIDGE, speak=True),
    "closed 15, 64 states": partial(HALF, options={"d_state": 64}),
    "closed 15, expand 1": partial(HALF, options={"expand": 1}),
    "closed 15, steps of 1e-2 to 1": partial(HALF, start="large steps"),
    "closed 15 mamba2": partial(HALF, mixer="mamba2", options={"d_state": 64}),
    "closed 15 mamba3": partial(HALF, mixer="mamba3", options={"d_state": 64}),
    "closed 15, 6k tokens": partial(HALF, fit={"topics": 12, "vim": 12}),
    "closed 15, 25k tokens": partial(HALF, fit={"topics": 48, "vim": 48}),
    "closed 15, 12k tokens of varied text": partial(HALF, fit={"topics": 16, "vim": 0, "varied": 32}),
    "closed 15, 49k tokens of varied text": partial(HALF, fit={"topics": 64, "vim": 0, "varied": 128}),
    "closed 15, values in the channels": partial(HALF, start="values"),
    **{f"{n} attention start": partial(unsolved, count=n, start="attention") for n in COUNTS},
    **{f"closed {n} attention start": partial(closed_form, count=n, start="attention") for n in COUNTS},
}
GENTLE = {"rate": {"k": 3e-4}}
BEST = {"count": 15, "speak": True, **FROM_3, **WIDE}
MANY = "by its cost from 3 on, wide, 49k tokens"
STEPS = {
    "15: solve, 24 end-to-end steps": partial(
        stages, speak=True, count=15, plan="sk", steps={"k": 24}, every=4, **GENTLE
    ),
    "15: 32 end-to-end steps": partial(stages, speak=True, count=15, plan="k", steps={"k": 32}, every=4),
    "15: 24 forced steps, solve": partial(stages, speak=True, count=15, plan="fs", steps={"f": 24}),
    f"15 {MANY}: 24 forced steps, solve": partial(stages, plan="fs", steps={"f": 24}, fit=MIX, **BEST, **LONG),
    "30: solve, 24 end-to-end steps": partial(
        stages, speak=True, count=30, plan="sk", steps={"k": 24}, every=4, **GENTLE
    ),
    f"15 {MANY}: 24 end-to-end steps": partial(
        stages, plan="ok", steps={"k": 24}, kept="half.pt", **BEST, **LONG, **GENTLE
    ),
    f"15 {MANY}: 300 end-to-end steps": partial(
        stages, plan="sk", steps={"k": 300}, rate={"k": 5e-4}, fit=MIX, texts=(420, 420, 500), every=4, **BEST
    ),
    "30, wide, 49k tokens: 24 end-to-end steps": partial(
        stages, count=30, speak=True, plan="ok", steps={"k": 24}, kept="all.pt", **WIDE, **LONG, **GENTLE
    ),
    "15 by its cost from 3 on, wide, varied: layer steps, 30 end-to-end steps": partial(
        stages, plan="lk", steps={"k": 30}, rate={"l": 3e-4, "k": 3e-4}, fit=BROAD, **BEST, **LONG
    ),
}
SHORT = {"steps": {"f": 16, "k": 8}, "every": 4, **GENTLE}
CHAINS = {(n, seed): seeded(f"{n}: 16 forced steps, solve, 8 end-to-end steps", seed) for n, seed in DRAWN}
ALONE = {(n, seed): seeded(f"{n}: end-to-end steps alone, in the same time", seed) for n, seed in DRAWN}
BY_COUNT = {
    **{name: partial(stages, count=n, plan="fsk", seed=seed, **SHORT) for (n, seed), name in CHAINS.items()},
    **{name: partial(in_the_same_time, chain=CHAINS[n, seed], count=n, seed=seed) for (n, seed), name in ALONE.items()},
}
GENTLER = {  # why eight steps end to end ruin a student without its first attentions
    f"{n}: 16 forced steps, solve, 8 end-to-end steps at {rate:.0e}": partial(
        stages, count=n, plan="fsk", **SHORT | {"rate": {"k": rate}}
    )
    for n in (22, 30)
    for rate in (3e-5, 1e-4)
}
VARIED = {
    f"closed 15 {MANY} with books": partial(HALF, **FROM_3, **WIDE, fit=BOOKS, speak=True),
    f"15 {MANY} with books: 24 forced steps, solve": partial(
        stages, plan="fs", steps={"f": 24}, fit=BOOKS, **BEST, **ALL_TEXTS
    ),
    f"15 {MANY} with books: 96 forced steps, solve, 24 end-to-end steps": partial(
        stages, plan="fsk", steps={"f": 96, "k": 24}, fit=BOOKS, **BEST, **ALL_TEXTS, **GENTLE
    ),
    f"15 {MANY} with books: 240 forced steps, solve, 160 end-to-end steps": partial(
        stages, plan="fsk", steps={"f": 240, "k": 160}, fit=BOOKS, texts=(400, 400, 400, 400), every=4, **BEST, **GENTLE
    ),
    **{
        f"15 {MANY} with books: 24 forced steps at {rate:.0e}, solve": partial(
            stages, plan="fs", steps={"f": 24}, rate={"f": rate}, fit=BOOKS, **BEST, **ALL_TEXTS
        )
        for rate in (3e-4, 3e-3)
    },
    f"15 {MANY} with books: 24 forced steps, solve, 24 end-to-end steps at 1e-03": partial(
        stages, plan="fsk", steps={"f": 24, "k": 24}, fit=BOOKS, **BEST, **ALL_TEXTS
    ),
    "30, wide, 49k tokens with books: 48 forced steps, solve, 96 end-to-end steps at 3e-05": partial(
        stages,
        count=30,
        plan="fsk",
        steps={"f": 48, "k": 96},
        rate={"k": 3e-5},
        fit=BOOKS,
        speak=True,
        **WIDE,
        **ALL_TEXTS,
    ),
}
RUNS = {
    "teacher": base,
    "sensitivity": delete_each,
    "each solved": partial(solve_each, fit=(16, 16, 16), rows={"topics": 2, "vim": 2, "prose": 4}),
    "each solved, elsewhere": partial(solve_each, fit=(24, 24, 0), rows={"prose": 12}),
    **CURVES,
    **LARGE,
    **OPTIONS,
    **STEPS,
    **BY_COUNT,
    **GENTLER,
    **VARIED,
    "decode": decode,
}
