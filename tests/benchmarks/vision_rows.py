"""The runs of `bench_vision` by name: at 112 pixels, and at 56 those that begin with that."""

import time
from functools import partial

from tests.benchmarks.vision_speed import speed
from tests.benchmarks.vision_students import (
    adaptive,
    again,
    attention_start,
    by_direction,
    chained,
    deleted,
    end_to_end,
    forced,
    last_cosine,
    layers_mse,
    new_student,
    relations,
    smaller,
    solved,
)


def judged(bench, make, probe=True):
    """Make a student and judge it."""
    begin = time.process_time()
    student, log = make(bench)
    seconds = time.process_time() - begin
    return {"seconds": seconds, "stages": log, **bench.scores(student, probe)}


def base(bench):
    """Measure the teacher itself, and the share of the most common class."""
    share = 100 * (bench.labels == 0).float().mean().item()
    return {**bench.yardsticks(bench.teacher), "majority": share}


def made(start, *stages, probe=True, **options):
    """Build a start with its options, and the stages after it."""
    return partial(judged, make=lambda bench: chained(bench, partial(start, **options), *stages), probe=probe)


VARIED = {"count": 1000, "source": "varied"}
RICH = {"directions": 4, "expand": 4}
LARGE = {
    "teacher": base,
    "speed": speed,
    "deleted": made(deleted),
    "random, half width": made(smaller, basis="random"),
    "closed, 2 directions": made(solved),
    **{f"closed, seed {seed}": made(solved, seed=seed) for seed in (1, 2)},
    "mlp": made(solved, fit={"mlp": True}),
    "4 directions": made(solved, directions=4),
    **{f"1,000 photographs, rich, seed {seed}": made(solved, count=1000, **RICH, seed=seed) for seed in range(3)},
    **{
        f"1,000 photographs, rich, mlp, seed {seed}": made(solved, count=1000, fit={"mlp": True}, **RICH, seed=seed)
        for seed in (0, 1)
    },
    "1,000 photographs, rich, then gently": made(
        solved, partial(end_to_end, compare=layers_mse, seconds=300, rate=1e-5), count=1000, **RICH
    ),
    **{
        f"1,000 photographs, forced for {seconds} s, then closed, seed {seed}": made(
            partial(new_student, seed=seed), partial(forced, seconds=seconds, seed=seed), partial(again, count=1000)
        )
        for seconds in (300, 1200)
        for seed in range(3)
    },
    "varied": made(solved, **VARIED, probe=False),
}
GOOD = {"count": 1000, "fit": {"mlp": True}}
SMALL = {
    "teacher": base,
    "deleted": made(deleted),
    "attention start": made(attention_start),
    "attention start, closed": made(attention_start, count=1000),
    **{f"closed, seed {seed}": made(solved, count=1000, seed=seed) for seed in range(3)},
    **{f"closed, mlp, seed {seed}": made(solved, **GOOD, seed=seed) for seed in range(3)},
    "closed, then to the end": made(solved, partial(end_to_end, compare=layers_mse, seconds=60), count=1000),
    "closed, then slowly": made(solved, partial(end_to_end, compare=layers_mse, seconds=60, rate=3e-5), count=1000),
    "closed, mirrored": made(solved, count=2000, source="mirrored"),
    "closed, then gently": made(solved, partial(end_to_end, compare=layers_mse, seconds=60, rate=1e-5), count=1000),
    # as long as closed form and steps together
    "random, to the end": made(new_student, partial(end_to_end, compare=layers_mse, seconds=98)),
    "varied": made(solved, **VARIED),
    "varied, 2,000": made(solved, **VARIED | {"count": 2000}),
    "varied, 2,000, rich": made(solved, **VARIED | {"count": 2000}, **RICH),
    "varied, 2,000, rich, mlp": made(solved, **VARIED | {"count": 2000}, fit={"mlp": True}, **RICH),
    "varied, 2,000, mamba3": made(solved, **VARIED | {"count": 2000}, mixer="mamba3", directions=4),
    **{
        f"varied, 6,000, rich, mlp, seed {seed}": made(
            solved, **VARIED | {"count": 6000}, fit={"mlp": True}, **RICH, seed=seed
        )
        for seed in range(3)
    },
    **{
        f"varied, 6,000, forced for {seconds} s, then closed, mlp, seed {seed}": made(
            partial(new_student, seed=seed),
            partial(forced, source="varied", seconds=seconds, seed=seed),
            partial(again, **VARIED | {"count": 6000}, mlp=True),
        )
        for seconds in (300, 1200)
        for seed in range(3)
    },
    "closed, rich": made(solved, count=1000, **RICH),
    **{f"closed, {count} directions": made(solved, count=1000, directions=count) for count in (1, 4)},
    **{f"closed, class token {place}": made(solved, count=1000, token=place) for place in ("first", "middle", "last")},
    "closed, relative": made(solved, count=1000, fit={"weighting": "relative"}),
    "closed, then forced": made(solved, partial(forced, seconds=30), partial(again, count=1000), count=1000),
    **{
        f"closed, then {name}": made(solved, partial(end_to_end, compare=loss, seconds=60, rate=1e-5), count=1000)
        for name, loss in (
            ("cosine", last_cosine),
            ("adaptive", adaptive),
            ("relations", relations),
            ("bidirectional", by_direction),
        )
    },
    "closed, then relations, solved again": made(
        solved,
        partial(end_to_end, compare=relations, seconds=60, rate=1e-5),
        partial(again, count=1000),
        count=1000,
    ),
    "closed, then forced for 120 s": made(solved, partial(forced, seconds=120), partial(again, count=1000), count=1000),
    "forced for 120 s, then closed": made(new_student, partial(forced, seconds=120), partial(again, count=1000)),
    "closed, rich, then forced for 240 s": made(
        solved, partial(forced, seconds=240), partial(again, count=1000), count=1000, **RICH
    ),
    "closed, 4 directions, then multi-directional": made(
        solved, partial(end_to_end, compare=by_direction, seconds=60, rate=1e-5), count=1000, directions=4
    ),
    "axes": made(smaller, basis="axes", count=1000),
    "neurons": made(smaller, basis="neurons", count=1000),
    "axes alone": made(smaller, basis="axes", count=1000, fit=False),
    "neurons alone": made(smaller, basis="neurons"),
    "random, half width": made(smaller, basis="random"),
    "mamba2": made(solved, count=1000, mixer="mamba2"),
    "mamba3": made(solved, count=1000, mixer="mamba3"),
}
for family in ("vim", "plainmamba"):
    SMALL[f"{family}, random"] = made(smaller, basis="random", family=family)
    SMALL[f"{family}, neurons alone"] = made(smaller, basis="neurons", family=family)
    SMALL[f"{family}, neurons"] = made(smaller, basis="neurons", count=1000, family=family)
SMALL["vim, axes alone"] = made(smaller, basis="axes", count=1000, fit=False, family="vim")
for family in ("vim", "vim, deep"):
    SMALL[f"{family}, axes"] = made(smaller, basis="axes", count=1000, family=family)
# at 56 pixels VMamba ends on four tokens, too few of them in all photographs for a readout
LARGE["vmamba, random"] = made(smaller, basis="random", family="vmamba")
LARGE["vmamba, neurons alone"] = made(smaller, basis="neurons", family="vmamba")
for basis in ("axes", "neurons"):
    LARGE[f"vmamba, {basis}"] = made(smaller, basis=basis, count=500, family="vmamba")
for family in ("vim, deep", "vmamba"):
    SMALL[f"{family}, random"] = made(smaller, basis="random", family=family)
    SMALL[f"{family}, neurons alone"] = made(smaller, basis="neurons", family=family)
RUNS = LARGE | {f"56: {name}": run for name, run in SMALL.items()}
