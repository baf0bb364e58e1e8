"""The pictures of the documentation, drawn from the library itself: `python docs/mkdocs/pictures.py` writes them."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import diagrams
import front
from svg import BLUE, GREY, ORANGE, SERIES, Chart, Svg

from transmamba import models, ops, transfer
from transmamba.distill import AdaptiveLayerDistill, FeatureCalibrator, TransMambaLoss

FOLDER = Path(__file__).parents[1] / "pictures"


def heat(svg: Svg, matrix: torch.Tensor, x: float, y: float, cell: float, colour: str) -> None:
    """A matrix as squares: the larger the number, the stronger the colour; empty squares are exact zeros."""
    top = matrix.abs().max()
    for i, row in enumerate((matrix.abs() / top).tolist()):
        for j, value in enumerate(row):
            options = {"x": x + j * cell, "y": y + i * cell, "width": cell - 1, "height": cell - 1}
            outline = {"stroke": "currentColor", "stroke_opacity": "0.15"}
            svg.add("rect", **options, fill=colour, fill_opacity=f"{0.1 + 0.9 * value if value else 0:.1f}", **outline)


def scan_orders() -> Svg:
    """Each order of `ops.scan_order` as a path over a grid, from blue to orange."""
    names = ("raster", "raster_reverse", "column", "snake", "snake_column", "diagonal", "antidiagonal", "temporal")
    svg = Svg(760, 372, "Eight scan orders, each as a path over the tokens of a grid")
    for number, name in enumerate(names):
        left, top = 22 + 190 * (number % 4), 36 + 182 * (number // 4)
        grid = (2, 3, 4) if name == "temporal" else (4, 5)
        svg.text(left + 70, top - 20, name, font_weight="600")
        draw_order(svg, ops.scan_order(name, grid).index.tolist(), grid, left, top)
    return svg


def draw_order(svg: Svg, index: list[int], grid: tuple[int, ...], left: float, top: float) -> None:
    """One path; frames of a video stand one below the other, slightly shifted."""
    *frames, rows, columns = grid
    step, shift = (34, 0) if not frames else (30, 66)

    def place(token: int) -> tuple[float, float]:
        frame, rest = divmod(token, rows * columns)
        row, column = divmod(rest, columns)
        height = 20 if frames else step
        return left + column * step + frame * 14, top + row * height + frame * shift

    points = [place(token) for token in index]
    for i, (start, end) in enumerate(zip(points, points[1:], strict=False)):
        share = i / max(len(points) - 2, 1)
        mix = [round(a + (b - a) * share) for a, b in zip((59, 130, 246), (232, 134, 46), strict=True)]
        svg.line([start, end], "#{:02x}{:02x}{:02x}".format(*mix), 2)
    for x, y in points:
        svg.add("circle", cx=x, cy=y, r=2.5, fill="currentColor")
    svg.add("circle", cx=points[0][0], cy=points[0][1], r=6, fill=BLUE)
    svg.add("circle", cx=points[-1][0], cy=points[-1][1], r=6, fill=ORANGE)


def mixing_matrices() -> Svg:
    """The matrix that a forward scan, a backward scan and their sum apply to the tokens."""
    torch.manual_seed(1)
    tokens, states = 9, 4
    dt, A = 0.15 + 0.2 * torch.rand(1, 2, tokens, 1), -torch.linspace(0.5, 2, states).expand(2, 1, states)
    B, C = torch.rand(1, 2, tokens, states), torch.rand(1, 2, tokens, states)
    orders = [ops.scan_order(name, tokens) for name in ("forward", "backward")]
    forward, backward = ops.mixing_matrix(dt, A, B, C, orders=orders)[0, :, 0]
    svg = Svg(700, 250, "Mixing matrices of a forward scan, a backward scan, and both")
    titles = (("forward", forward, BLUE), ("backward", backward, ORANGE), ("both", forward + backward, "#2f9e6a"))
    for number, (title, matrix, colour) in enumerate(titles):
        left = 30 + 230 * number
        svg.text(left + 90, 14, title, font_weight="600")
        heat(svg, matrix, left, 32, 20, colour)
        svg.text(left + 90, 226, "input token", font_size=12)
    svg.add(
        "text", "output token", x=0, y=0, transform="translate(18 122) rotate(-90)", fill="currentColor", font_size=12,
        text_anchor="middle",
    )  # fmt: skip
    return svg


def step_size() -> Svg:
    """How a state decays behind an impulse, for three step sizes."""
    svg = Svg(620, 262, "Response of one channel to an impulse at step 5 for three step sizes")
    chart = Chart(svg, (56, 32, 380, 176), (0, 10, 20, 30, 40), (0, 0.25, 0.5, 0.75, 1), ("step t", "y_t / y_5"))
    u = torch.zeros(1, 1, 41)
    u[..., 5] = 1
    ones = torch.ones(1, 1, 41)
    for row, dt in enumerate((0.05, 0.15, 0.5)):
        y = ops.selective_scan(u, dt * ones, -torch.ones(1, 1), ones, ones)[0, 0]
        chart.curve([(t, float(v / y[5])) for t, v in enumerate(y)], SERIES[row], f"step size {dt:g}", row)
    return svg


def layer_weights() -> Svg:
    """The weight of the one layer that differs, by its cosine, for each weighting."""
    svg = Svg(720, 300, "Weight of one of four layers against its cosine, for each weighting")
    chart = Chart(
        svg, (56, 32, 400, 212), (0, 0.2, 0.4, 0.6, 0.8, 1), (0, 0.25, 0.5, 0.75, 1), ("cosine of layer 0", "weight")
    )
    cosines = [i / 100 for i in range(1, 101)]
    kinds: list[tuple[str, dict]] = [
        ("ratio, tau 1", {}),
        ("ratio, tau 0.25", {"tau": 0.25}),
        ("neg_cos, tau 0.1", {"weighting": "neg_cos", "tau": 0.1}),
        ("uniform", {"weighting": "uniform"}),
        ("linear (first layer)", {"weighting": "linear"}),
    ]
    for row, (name, options) in enumerate(kinds):
        loss = AdaptiveLayerDistill(**options)
        weights = [float(loss.weights(torch.tensor([c, 0.5, 0.5, 0.5]))[0]) for c in cosines]
        chart.curve(list(zip(cosines, weights, strict=True)), SERIES[row], name, row)
    x = chart.at(0.5, 0)[0]
    svg.line([(x, 32), (x, 244)], GREY, 1, "4 4")
    svg.text(x + 6, 40, "the other three", anchor="start", font_size=11)
    return svg


def calibrator() -> Svg:
    """Where the channels of a new calibrator go, for three kinds of padding."""
    svg = Svg(700, 240, "Student to teacher channel maps of three new calibrators")
    kinds = (("right", "right"), ("center", "center"), ("kept channels", (0, 2, 3, 5, 8, 9)))
    for number, (title, pad) in enumerate(kinds):
        with torch.no_grad():
            matrix = FeatureCalibrator(6, 10, pad=pad)(torch.eye(6)).mT
        left = 50 + 220 * number
        svg.text(left + 54, 14, title, font_weight="600")
        heat(svg, matrix, left, 32, 18, SERIES[number])
        svg.text(left + 54, 226, "6 student channels", font_size=12)
    svg.add(
        "text", "10 teacher channels", x=0, y=0, transform="translate(22 122) rotate(-90)", fill="currentColor",
        font_size=12, text_anchor="middle",
    )  # fmt: skip
    return svg


def kept_channels() -> Svg:
    """The importance of every residual channel of a small teacher, and which of them a narrower student keeps."""
    torch.manual_seed(0)
    size = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 5}
    teacher = models.ViT(**size, dim=32, depth=2, heads=2)
    # a trained teacher is uneven; this one is made so
    scale = 0.6 + 0.8 * torch.rand(32)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            if weight.dim() == 2 and weight.shape[-1] == 32 and name != "pos_embed":
                weight.mul_(scale)
    student = models.VisionMamba(**size, dim=20, depth=2)
    kept = transfer.subclone(teacher, student, transfer.magnitude_importance).kept["residual"]
    score = torch.stack([block.mlp.fc1.weight.detach().abs().mean(0) for block in teacher.blocks]).mean(0)
    svg = Svg(720, 220, "Importance of 32 residual channels; the 20 that are kept are blue")
    top = float(score.max())
    for channel, value in enumerate((score / top).tolist()):
        colour = BLUE if channel in kept else GREY
        svg.rect(24 + 21 * channel, 176 - 140 * value, 15, 140 * value, colour, 0.7 if channel in kept else 0.25)
    svg.text(24, 16, "mean |weight| of each residual channel", anchor="start", font_size=12)
    svg.text(
        360, 200, "residual channel 0 to 31; blue: the 20 that the student keeps, in their old order", font_size=12
    )
    return svg


def total_weights() -> Svg:
    """The two weights of the total loss against alpha, in both versions of the paper."""
    svg = Svg(640, 250, "Task and distillation weight against alpha in v1 and v2")
    chart = Chart(svg, (56, 32, 320, 164), (0, 0.25, 0.5, 0.75, 1), (0, 0.25, 0.5, 0.75, 1), ("alpha", "weight"))
    grid = [i / 20 for i in range(21)]
    losses = {"v1": TransMambaLoss.v1, "v2, beta = 0.5": lambda alpha: TransMambaLoss.v2(alpha, 0.5)}
    for row, (name, make) in enumerate(losses.items()):
        made = [(alpha, make(alpha)) for alpha in grid]
        chart.curve([(a, loss.task_weight) for a, loss in made], BLUE, f"{name}: task", 2 * row, "6 4" * row)
        chart.curve(
            [(a, loss.distill_weight) for a, loss in made], ORANGE, f"{name}: distillation", 2 * row + 1, "6 4" * row
        )
    return svg


PICTURES: dict[str, Callable[[], Svg]] = {
    "scan_orders": scan_orders,
    "mixing_matrices": mixing_matrices,
    "step_size": step_size,
    "layer_weights": layer_weights,
    "calibrator": calibrator,
    "kept_channels": kept_channels,
    "total_weights": total_weights,
    "data_flow": diagrams.data_flow,
    "losses": diagrams.losses,
    "directions": diagrams.directions,
    "readouts": diagrams.readouts,
    "moves": front.moves,
    "language_model": front.language_model,
}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(str(draw()))
