"""Glyph scenes of notebook 04: the worth of each part of a transfer, and how often training diverges.

    python -m tests.benchmarks.bench_llava parts --seeds 5
    python -m tests.benchmarks.bench_llava stability --rates 0.01 0.03 0.1 0.3 --seeds 10

Scenes, teacher and losses are the cells of the notebook, which are run first (about a minute). All students here are
the plain Mamba of the notebook, without CrossMamba unless --query is given.

`parts` trains students from every start with either loss, and prints the accuracy of every kind of question in per
cent, mean ± standard deviation (n). `stability` trains with Adam, without warm-up, clipping or weight decay, from four
starts: SSM at random or from a Mamba that has read the scenes' texts, convolutions by default or from a normal
distribution; the rest comes from the teacher. A run diverges if the mean of its last five losses is not finite or above
chance.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import transmamba as tm

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04_cross_modal.py"
BATCH = 32


def notebook() -> dict[str, Any]:
    """Return the names that the notebook's cells define up to the training of its students; its teacher is trained."""
    cells: dict[str, Any] = {}
    source = NOTEBOOK.read_text().partition("# ## Train the students")[0]
    exec(compile(source, NOTEBOOK, "exec"), cells)
    return cells


def inherit_weights(cells: dict[str, Any], student: nn.Module, mamba: nn.Module | None = None) -> None:
    """Inherit as the notebook does, with mixers as initialised or from a Mamba."""
    teacher, importance = cells["teacher"].model, tm.transfer.magnitude_importance
    report = tm.subclone(teacher.language_model, student.language, importance, ssm_from=mamba)
    projector = teacher.multi_modal_projector
    kept = torch.zeros(teacher.config.text_config.hidden_size)
    kept[list(report.kept["residual"])] = 1.0
    scores = {"residual": kept, "inner": projector.linear_2.weight.abs().sum(0)}
    tm.subclone(projector, student.projector, scores, plan=cells["PROJECTOR"])


def learn(cells: dict[str, Any], start: Callable[[nn.Module], Any], distil: bool, seed: int, query: str | None) -> Any:
    """Measure the accuracy of one student after the notebook's steps."""
    student = cells["new_student"](seed, query)
    start(student)
    trained = [p for name, p in student.named_parameters() if not name.startswith("vision.")]
    calibrators = tm.distill.LayerCalibrators([64, 64], 96)

    def loss(*batch: Any) -> Any:
        if distil:
            return cells["transfer_loss"](student, calibrators, *batch)
        return cells["run_student"](student, *batch).loss()

    parameters = [*trained, *calibrators.parameters()] if distil else trained
    cells["train"](parameters, loss, cells["student_data"], cells["STUDENT_STEPS"], name="", seed=seed)
    return cells["accuracy"](cells["answer_with"](student))


def parts(cells: dict[str, Any], seeds: int, query: str | None) -> None:
    """Start x loss x seed."""
    mamba = reader(cells)
    starts = {
        "random": lambda student: None,
        "subclone": lambda student: inherit_weights(cells, student),
        "subclone, SSM from a Mamba": lambda student: inherit_weights(cells, student, mamba),
        "subclone, mixers from attention": cells["inherit"],
    }
    for (name, start), distil in itertools.product(starts.items(), (False, True)):
        scores = [learn(cells, start, distil, seed, query) for seed in range(seeds)]
        columns = (f"{statistics.mean(x):.1f} ± {statistics.pstdev(x):.1f}" for x in zip(*scores, strict=True))
        print(
            f"| {name} | {'answers, logits, features' if distil else 'answers'} | {' | '.join(columns)} |", flush=True
        )


def reader(cells: dict[str, Any]) -> nn.Module:
    """Train a Mamba language model on questions, answers and descriptions for 300 steps, without images."""
    torch.manual_seed(5)
    mamba, texts = tm.models.MambaLM(len(cells["WORDS"]), 64, depth=2), cells["teacher_data"][1].clamp_min(0)
    optimizer, generator = torch.optim.AdamW(mamba.parameters(), 2e-3), torch.Generator().manual_seed(9)
    for _ in range(300):
        ids = texts[torch.randint(len(texts), (64,), generator=generator)]
        optimizer.zero_grad()
        F.cross_entropy(mamba(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0).backward()
        optimizer.step()
    return mamba


def losses(cells: dict[str, Any], student: nn.Module, rate: float, steps: int, seed: int) -> list[float]:
    """Return the loss of every step, up to the first that is not finite."""
    parameters = [p for name, p in student.named_parameters() if not name.startswith("vision.")]
    optimizer, generator = torch.optim.Adam(parameters, rate), torch.Generator().manual_seed(seed)
    images, ids, labels = cells["student_data"][:3]
    found: list[float] = []
    while len(found) < steps and (not found or math.isfinite(found[-1])):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        loss = cells["run_student"](student, images[chosen], ids[chosen], labels[chosen]).loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def stability(cells: dict[str, Any], rates: list[float], seeds: int, steps: int, query: str | None) -> None:
    """Run every rate with every start and seed."""
    chance, mamba = math.log(len(cells["WORDS"])), reader(cells)
    for rate, pretrained, normal in itertools.product(rates, (False, True), (False, True)):
        ends, peaks = [], []
        for seed in range(seeds):
            student = cells["new_student"](seed, query)
            importance, ssm = tm.transfer.magnitude_importance, mamba if pretrained else None
            tm.subclone(cells["teacher"].model.language_model, student.language, importance, ssm_from=ssm)
            if normal:
                tm.transfer.init_convolutions(student.language, "normal")
            curve = losses(cells, student, rate, steps, seed)
            ends.append(statistics.mean(curve[-5:]) if math.isfinite(curve[-1]) else math.inf)
            peaks.append(max(x for x in curve if math.isfinite(x)))
        diverged = sum(end > chance for end in ends)
        start = f"{'pretrained' if pretrained else 'random'} | {'normal' if normal else 'default'}"
        numbers = f"{statistics.median(ends):.2f} | {max(ends):.2f} | {max(peaks):.1f}"
        print(f"| {rate:g} | {start} | {diverged} of {seeds} | {numbers} |", flush=True)


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parts", "stability"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--steps", type=int, default=40, help="of a run of stability")
    parser.add_argument("--query", choices=("image", "text"), help="with CrossMamba after the first block")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells = notebook()
    if options.what == "parts":
        parts(cells, options.seeds, options.query)
    else:
        stability(cells, options.rates, options.seeds, options.steps, options.query)


if __name__ == "__main__":
    main()
