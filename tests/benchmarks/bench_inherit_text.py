"""The worth of inheritance on MiniLM: importance scores, layer maps, rescaling, and a longer run of notebook 03.

    python -m tests.benchmarks.bench_inherit_text compare RECORDS.jsonl [--seeds 5] [--steps 30]
    python -m tests.benchmarks.bench_inherit_text long RECORDS.jsonl [--seeds 3] [--steps 300]
    python -m tests.benchmarks.bench_inherit_text show RECORDS.jsonl [--figure CURVES.svg]

`compare` halves the channels (group `width`) or the layers (`depth`), one factor at a time; `long` trains the
notebook's students. Both run the notebook's own cells up to its training loop, with knobs changed. Products of matrices
are in bfloat16, weights in float32. Every finished seed adds a line per student to RECORDS. Needs the notebook extra.
"""

import argparse
import copy
import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

import jupytext
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import transmamba as tm
from tests.benchmarks.bench_inherit import plot
from transmamba.transfer import AttentionInit

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "03_text_encoder.py"
HALF = {"dim": "192", "depth": "6"}
SCORES = ("stability", "stability without tables", "magnitude", "activation", "taylor", "wanda", "random", "first")
WIDTH = {
    "scratch": HALF | {"inherit": ""},
    **{f"importance={name}": HALF | {"importance": name} for name in SCORES},
    "stability, rescale=sqrt": HALF | {"importance": "stability", "rescale": "sqrt"},
    "stability, start=attention": HALF | {"importance": "stability", "start": "attention"},
    "activation, rescale=sqrt": HALF | {"importance": "activation", "rescale": "sqrt"},
    "activation, start=attention": HALF | {"importance": "activation", "start": "attention"},
}
DEPTH = {
    f"layer_map={name}{', start=attention' if start else ''}": {"depth": "3", "layer_map": name, "start": start}
    for start in ("", "attention")
    for name in ("early", "uniform", "drop_middle")
}


def notebook(steps: int, held_out: int, probe: int) -> dict[str, Any]:
    """Return the names that notebook 03 has before its training loop."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(cell for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"):
        if cell.source.startswith("trained, curves"):
            return names
        source = cell.source
        for knob, value in {"STEPS": steps, "HELD_OUT": held_out, "PROBE": probe}.items() if number == 0 else ():
            source = re.sub(rf"^{knob} = .*$", f"{knob} = {value}", source, flags=re.MULTILINE)
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    raise ValueError(f"{NOTEBOOK} has no training loop")


def scores(names: dict[str, Any]) -> dict[str, Any]:
    """Compute the importance of MiniLM's weights; its loss is to find a sentence again under another dropout."""
    torch.manual_seed(0)
    t, teacher = tm.transfer, names["teacher"]
    tuned = copy.deepcopy(teacher).requires_grad_(True)
    texts = names["random"].Random(1).sample(names["train_text"], 512)
    batches = [names["encode"](texts[i : i + 32]) for i in range(0, len(texts), 32)]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, mask = batch
        one, two = (names["sentence_vectors"](model(ids, mask.long()).last_hidden_state, mask) for _ in range(2))
        return F.cross_entropy(one @ two.T / 0.05, torch.arange(len(ids)))

    optimizer = torch.optim.AdamW(tuned.train().parameters(), 3e-5)
    taylor = t.taylor_importance(copy.deepcopy(tuned), batches, loss, progress=False)
    for batch in batches:
        optimizer.zero_grad()
        loss(tuned, batch).backward()
        optimizer.step()
    inputs = [{"input_ids": ids, "attention_mask": mask.long()} for ids, mask in batches]
    stability = t.stability_importance(teacher, tuned)
    return {
        "stability": stability,
        "stability without tables": {name: score for name, score in stability.items() if "embeddings." not in name},
        "magnitude": t.magnitude_importance,
        "activation": t.activation_importance(teacher, inputs, progress=False),
        "taylor": taylor,
        "wanda": t.wanda_importance(teacher, inputs, progress=False),
        "first": t.first_importance,
    }


def build(names: dict[str, Any], way: dict[str, str], known: dict[str, Any], seed: int) -> nn.Module:
    """Build a student and its calibrators."""
    torch.manual_seed(seed)
    dim, depth = int(way.get("dim", 384)), int(way["depth"])
    encoder = tm.models.MambaEncoder(len(names["tokenizer"]), dim, depth=depth, max_length=512, types=2)
    kept: Any = range(dim)
    if way.get("inherit", "yes"):
        chosen = way.get("importance", "first")
        report = tm.subclone(
            names["teacher"],
            encoder,
            tm.transfer.random_importance(seed) if chosen == "random" else known[chosen],
            layer_map=way.get("layer_map", "uniform"),  # type: ignore[arg-type]
            rescale="sqrt" if way.get("rescale") else None,
            ssm_from=AttentionInit(heads=12, length=24) if way.get("start") else None,
        )
        kept = report.kept.get("residual", kept)
    calibrate = tm.distill.LayerCalibrators([dim] * depth, 384, pad=kept) if dim < 384 else nn.Identity()
    return nn.ModuleDict({"encoder": encoder, "calibrate": calibrate})


def quickly(names: dict[str, Any], student: nn.Module, texts: tuple[str, ...]) -> Tensor:
    """Compute a student's vectors in float32, from products in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return names["embed_student"](student, texts).float()


def measure(names: dict[str, Any], student: nn.Module, last: bool) -> dict[str, float]:
    """Measure the cosine to the teacher and shared neighbours; at the end the probes too."""
    held, wanted = names["held_text"], names["wanted"][names["held_text"]]
    # the linear map of a narrow student is solved in float32: bfloat16 is too coarse where one direction dominates
    vectors = quickly(names, student, held)
    found = {"cosine": (names["widen"](vectors, student) * wanted).sum(-1).mean().item()}
    found["overlap"] = names["overlap"](vectors, wanted)
    if last:
        found["probe"] = names["probe"](quickly(names, student, names["probe_text"]), vectors)
        if names["category"]:
            found["category"] = names["probe_categories"](lambda texts: quickly(names, student, texts))
    return found


def run(path: Path, action: str, seeds: int, steps: int, chosen: list[str]) -> None:
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(record["group"], record["way"], record["seed"]) for record in map(json.loads, lines)}
    names = notebook(steps, *((490, 490) if action == "long" else (252, 406)))
    known = {} if action == "long" else scores(names)
    groups = {"long": names["WAYS"]} if action == "long" else {"width": WIDTH, "depth": DEPTH}
    for seed, (group, every) in itertools.product(range(seeds), groups.items()):
        ways = {way: every[way] for way in every if (group, way, seed) not in done and way in (chosen or every)}
        if not ways:
            continue
        if group == "long":
            students = {way: names["new_student"](seed, **options)[0] for way, (options, _) in ways.items()}
            losses = {way: loss for way, (_, loss) in ways.items()}
        else:
            students = {name: build(names, way, known, seed) for name, way in ways.items()}
            losses = dict.fromkeys(students, names["full"])
        measured = (steps,) if group == "long" else (0, steps // 10, steps)
        drawn = (0, steps // 10, *range(steps // 5, steps + 1, steps // 5)) if group == "long" else ()
        points, curves = train(names, students, losses, seed, steps, measured, drawn)
        for way in ways:
            record = {"group": group, "way": way, "seed": seed, "steps": steps, "points": points[way]}
            with path.open("a") as file:
                file.write(json.dumps(record | ({"curve": curves[way]} if drawn else {})) + "\n")


def train(
    names: dict[str, Any],
    students: dict[str, nn.Module],
    losses: dict[str, Any],
    seed: int,
    steps: int,
    measured: tuple[int, ...],
    drawn: tuple[int, ...],
) -> tuple[dict[str, dict[int, dict[str, float]]], dict[str, dict[int, float]]]:
    """Train as the notebook does; record `measure` at some steps, and at others the cosine on every few texts."""
    points: dict[str, dict[int, dict[str, float]]] = {way: {} for way in students}
    curves: dict[str, dict[int, float]] = {way: {} for way in students}

    def look(way: str, done: int) -> None:
        if done in measured:
            points[way][done] = measure(names, students[way], done == steps)
        if done in drawn:
            curves[way][done] = names["cosine_to_teacher"](students[way], names["few"])

    optimizers = {
        way: torch.optim.AdamW(student.parameters(), names["LEARNING_RATE"], fused=True)
        for way, student in students.items()
    }
    for way in students:
        look(way, 0)
    for done, texts in enumerate(tqdm(names["draw_batches"](seed), f"seed {seed}", mininterval=9), 1):
        ids, mask = names["encode"](texts)
        target = names["teacher_layers"](ids, mask)
        rate = names["LEARNING_RATE"] * min(1, 10 * done / steps) * (1 - (done - 1) / steps)
        for way, student in students.items():
            optimizers[way].param_groups[0]["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16):
                names["step"](student, optimizers[way], losses[way], ids, mask, target)
            look(way, done)
    return points, curves


def show(path: Path, figure: Path | None) -> None:
    """Print mean and deviation by group and way, and draw the curves of the long run."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for group in dict.fromkeys(record["group"] for record in records):
        mine = [record for record in records if record["group"] == group]
        steps = list(mine[0]["points"])
        shown = dict.fromkeys((*steps[:2], steps[-1]))
        columns = [(step, key) for step in shown for key in ("cosine", "overlap")]
        columns += [(steps[-1], key) for key in ("probe", "category") if key in mine[0]["points"][steps[-1]]]
        print(f"\n| {group} | seeds | " + " | ".join(f"{key} at {step}" for step, key in columns) + " |")
        for way in dict.fromkeys(record["way"] for record in mine):
            runs = [record["points"] for record in mine if record["way"] == way]
            cells = []
            for step, key in columns:
                values = [points[step][key] for points in runs]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
            print(f"| {way} | {len(runs)} | " + " | ".join(cells) + " |")
    if figure is not None:
        curves = [record for record in records if "curve" in record]
        plot(curves, figure, "cosine to the teacher's sentence vector", "MiniLM, held-out sentences")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("compare", "long", "show"))
    parser.add_argument("records", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", default=[], help="only these; all by default")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--figure", type=Path, help="of the curves of the long run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.action == "show":
        show(arguments.records, arguments.figure)
    else:
        run(arguments.records, arguments.action, arguments.seeds, arguments.steps, arguments.ways)


if __name__ == "__main__":
    main()
