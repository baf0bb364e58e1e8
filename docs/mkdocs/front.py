"""Pictures of the front page: the parts of a Transformer and where each goes, and a curve of the records."""

import re
from pathlib import Path

from svg import BLUE, GREEN, GREY, ORANGE, PURPLE, Chart, Svg

RECORDS = Path(__file__).parents[1] / "results.md"
ROW = re.compile(r"^\| (\d+) \| \+([\d.]+) \(\+[\d.]+\) \| \+([\d.]+) \(\+[\d.]+\) \| \d+ \|$", re.MULTILINE)


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


def rises() -> list[tuple[int, float, float]]:
    """Read the number of replaced layers, and the rise by deletion and by the closed form, from the records."""
    return [(int(count), float(deleted), float(closed)) for count, deleted, closed in ROW.findall(RECORDS.read_text())]


def language_model() -> Svg:
    """Draw the rise of the loss of SmolLM2-135M against the number of attentions that are gone."""
    svg = Svg(700, 290, "Rise of the loss of SmolLM2-135M against the number of attentions replaced by Mamba mixers")
    frame = (56, 34, 400, 196)
    chart = Chart(
        svg, frame, (0, 5, 10, 15, 20, 25, 30), (0, 2, 4, 6, 8), ("attentions replaced, of 30", "nats per token")
    )
    found = rises()
    for row, (name, column, colour) in enumerate((("deleted", 1, GREY), ("closed form", 2, GREEN))):
        points = [(0.0, 0.0), *((float(line[0]), float(line[column])) for line in found)]
        chart.curve(points, colour, name, row)
        for x, y in points:
            left, top = chart.at(x, y)
            svg.add("circle", cx=left, cy=top, r=3, fill=colour)
    svg.text(472, 90, "on text of a kind that", anchor="start", font_size=12)
    svg.text(472, 107, "nothing was fitted on,", anchor="start", font_size=12)
    svg.text(472, 124, "one seed", anchor="start", font_size=12)
    return svg
