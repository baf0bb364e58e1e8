"""Pictures of the front page: the parts of a Transformer and where each goes, and a curve of the records."""

import re
from pathlib import Path

from svg import BLUE, GREEN, GREY, ORANGE, PURPLE, Chart, Svg

RECORDS = Path(__file__).parents[1] / "results.md"
RISE = re.compile(r"\*{0,2}([-+][\d.]+)")  # the first figure of a cell, which is the one elsewhere


def moves() -> Svg:
    """Draw the parts of a teacher and the parts of the student that each becomes."""
    svg = Svg(760, 330, "The parts of a Transformer and the parts of a Mamba that each becomes")
    svg.text(115, 16, "teacher: Transformer", font_weight="600")
    svg.text(645, 16, "student: Mamba", font_weight="600")
    rows = [
        ("embedding, norms", "embedding, norms", "subclone: the important neurons", BLUE),
        ("MLP", "MLP, or none", "subclone: the important neurons", BLUE),
        ("attention", "Mamba mixer", "fit_layers: readouts solved against the stream", GREEN),
        ("features", "calibrated features", "AdaptiveLayerDistill, by direction: gradients", ORANGE),
        ("logits", "logits", "LogitsDistill, HiddenLogitsDistill: gradients", ORANGE),
    ]
    for number, (source, target, way, colour) in enumerate(rows):
        top = 34 + 58 * number
        svg.box(20, top, 190, 40, [source], PURPLE)
        svg.box(550, top, 190, 40, [target], colour)
        dash = "6 4" if colour == ORANGE else ""
        svg.arrow([(212, top + 20), (548, top + 20)], colour, 1.5, dash)
        svg.text(380, top + 8, way, font_size=12)
    return svg


def rises() -> list[list[tuple[float, float]]]:
    """Read curves from the records: deleted, closed form, wide mixers by solved cost, the best of eight minutes."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in RECORDS.read_text().splitlines()
            if line.startswith("|")]  # fmt: skip
    heads = [number for number, row in enumerate(rows) if row[0] == "attentions replaced"]
    by_count, wide = (next(number for number in heads if rows[number][1] == name) for name in ("deleted", "4"))
    counts = rows[by_count + 2 : by_count + 10]  # below the head and its rule
    curves = [[(float(row[0]), _rise(row[rows[by_count].index(name)])) for row in counts]
              for name in ("deleted", "closed form")]  # fmt: skip
    cells = zip(rows[wide][1:], rows[wide + 2][1:], strict=True)
    best = next(row for row in rows if row[0] == "then the closed form with books")
    lines = [[(0.0, 0.0), *curve] for curve in (*curves, [(float(count), _rise(cell)) for count, cell in cells])]
    return [*lines, [(15.0, _rise(best[1]))]]


def _rise(cell: str) -> float:
    """Read the first figure of a cell."""
    found = RISE.match(cell)
    if found is None:
        raise ValueError(f"{cell!r} of {RECORDS.name} has no figure to draw: adapt front.rises to its tables")
    return float(found[1])


def language_model() -> Svg:
    """Draw the rise of the loss of SmolLM2-135M against the number of attentions that are gone."""
    svg = Svg(740, 290, "Rise of the loss of SmolLM2-135M against the number of attentions replaced by Mamba mixers")
    frame = (56, 34, 400, 196)
    chart = Chart(
        svg, frame, (0, 5, 10, 15, 20, 25, 30), (0, 2, 4, 6, 8), ("attentions replaced, of 30", "nats per token")
    )
    names = (
        ("deleted", GREY),
        ("closed form", BLUE),
        ("closed form, wide, layers by cost", GREEN),
        ("more text, 96 forced steps", ORANGE),
    )
    for row, ((name, colour), points) in enumerate(zip(names, rises(), strict=True)):
        chart.curve(points, colour, name, row)
        for x, y in points:
            left, top = chart.at(x, y)
            svg.add("circle", cx=left, cy=top, r=3, fill=colour)
    for line, text in enumerate(("on text of a kind that", "nothing was fitted on,", "12k tokens; more: 49k")):
        svg.text(472, 127 + 17 * line, text, anchor="start", font_size=12)
    return svg
