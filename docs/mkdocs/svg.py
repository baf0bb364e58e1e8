"""Drawing: SVG that is legible on a light and on a dark page, and the same wherever it is drawn."""

from collections.abc import Sequence
from html import escape

BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b82f6", "#e8862e", "#2f9e6a", "#9361d6", "#d6485b", "#8b949e"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED)

# text and outlines take the page's colour; a file opened on its own follows the system
STYLE = (
    "<style>svg.tm{color-scheme:light dark;color:#1f2328;font:13px system-ui,sans-serif}"
    "@media (prefers-color-scheme:dark){svg.tm{color:#d1d7e0}}</style>"
)

Point = tuple[float, float]


def number(x: float) -> str:
    """One decimal, no trailing zero, no minus zero."""
    return f"{x:.1f}".replace("-0.0", "0.0").removesuffix(".0")


class Svg:
    """A picture that grows element by element.

    Args:
        width: in pixels.
        height: in pixels.
        title: what a screen reader says.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.elements: list[str] = []

    def __str__(self) -> str:
        size = f"{number(self.width)} {number(self.height)}"
        head = f'<svg class="tm" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", STYLE, *self.elements, "</svg>\n"])

    def add(self, tag: str, content: str = "", **attributes: str | float) -> None:
        """Any element; underscores in attribute names become hyphens."""
        values = {k.replace("_", "-"): v if isinstance(v, str) else number(v) for k, v in attributes.items()}
        text = " ".join(f'{name}="{escape(value)}"' for name, value in values.items())
        self.elements.append(f"<{tag} {text}>{content}</{tag}>" if content else f"<{tag} {text}/>")

    def text(self, x: float, y: float, text: str, *, anchor: str = "middle", **style: str | float) -> None:
        """Text whose baseline is a third of a line below `y`, so that `y` is its middle."""
        self.add("text", escape(text), x=x, y=y + 4.5, text_anchor=anchor, fill="currentColor", **style)

    def rect(self, x: float, y: float, w: float, h: float, colour: str = GREY, opacity: float = 0.2) -> None:
        """A rounded box with an outline of its colour."""
        self.add("rect", x=x, y=y, width=w, height=h, rx=4, fill=colour, fill_opacity=str(opacity), stroke=colour)

    def box(self, x: float, y: float, w: float, h: float, lines: Sequence[str], colour: str = GREY) -> None:
        """A box with lines of text in its middle; the first is strong if there are several."""
        self.rect(x, y, w, h, colour)
        top = y + h / 2 - 8.5 * (len(lines) - 1)
        for i, line in enumerate(lines):
            weight = {"font_weight": "600"} if i == 0 and len(lines) > 1 else {"font_size": 12}
            self.text(x + w / 2, top + 17 * i, line, **weight)

    def line(self, points: Sequence[Point], colour: str = "currentColor", width: float = 1.5, dash: str = "") -> None:
        """A polyline."""
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        extra = {"stroke_dasharray": dash} if dash else {}
        self.add("polyline", points=path, fill="none", stroke=colour, stroke_width=width, **extra)

    def arrow(self, points: Sequence[Point], colour: str = "currentColor", width: float = 1.5, dash: str = "") -> None:
        """A polyline with a head at its end."""
        (x0, y0), (x1, y1) = points[-2:]
        length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-6)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        base = (x1 - 7 * ux, y1 - 7 * uy)
        self.line([*points[:-1], base], colour, width, dash)
        corners = [(x1, y1), (base[0] - 3.5 * uy, base[1] + 3.5 * ux), (base[0] + 3.5 * uy, base[1] - 3.5 * ux)]
        self.add("polygon", points=" ".join(f"{number(x)},{number(y)}" for x, y in corners), fill=colour)


class Chart:
    """Axes inside a picture.

    Args:
        svg: where to draw.
        frame: left, top, width and height in pixels.
        x: the range of the horizontal axis, with the values to label.
        y: the same of the vertical axis.
        labels: names of both axes.
    """

    def __init__(
        self,
        svg: Svg,
        frame: tuple[float, float, float, float],
        x: Sequence[float],
        y: Sequence[float],
        labels: tuple[str, str],
    ) -> None:
        self.svg, self.frame = svg, frame
        self.x_range, self.y_range = (x[0], x[-1]), (y[0], y[-1])
        left, top, width, height = frame
        for value in y:
            level = self.at(x[0], value)[1]
            svg.add("line", x1=left, y1=level, x2=left + width, y2=level, stroke="currentColor", stroke_opacity="0.15")
            svg.text(left - 8, level, f"{value:g}", anchor="end", font_size=11)
        for value in x:
            svg.text(self.at(value, y[0])[0], top + height + 14, f"{value:g}", font_size=11)
        svg.text(left + width / 2, top + height + 32, labels[0], font_size=12)
        svg.text(left - 34, top - 14, labels[1], anchor="start", font_size=12)

    def at(self, x: float, y: float) -> Point:
        """The pixel of a pair of values."""
        left, top, width, height = self.frame
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        return left + width * (x - x0) / (x1 - x0), top + height * (1 - (y - y0) / (y1 - y0))

    def curve(self, points: Sequence[Point], colour: str, name: str, row: int, dash: str = "") -> None:
        """A curve, and its line in the legend right of the frame."""
        self.svg.line([self.at(x, y) for x, y in points], colour, 2, dash)
        left, top, width, _ = self.frame
        level = top + 8 + 20 * row
        self.svg.line([(left + width + 16, level), (left + width + 40, level)], colour, 2, dash)
        self.svg.text(left + width + 47, level, name, anchor="start", font_size=12)
