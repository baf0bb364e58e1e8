"""Pictures of how things hang together; what can be computed is computed by the library."""

import math

from svg import BLUE, GREEN, GREY, ORANGE, PURPLE, Svg

from transmamba.ops import scan_order


def data_flow() -> Svg:
    """From the images to the total loss, with shapes."""
    svg = Svg(760, 430, "Data flow: images through teacher and student, features through alignment and calibration")
    svg.box(300, 8, 160, 34, ["images, mixed and cut"], GREY)
    svg.box(24, 84, 250, 56, ["teacher, frozen", "[batch token' dim']"], PURPLE)
    svg.box(476, 84, 260, 56, ["student", "[batch token dim], by layer and direction"], BLUE)
    svg.arrow([(330, 42), (150, 82)])
    svg.arrow([(430, 42), (610, 82)])
    svg.box(24, 186, 250, 56, ["align_tokens", "class tokens off, grids made equal"], GREY)
    svg.box(476, 186, 260, 56, ["LayerCalibrators", "dim -> dim', one per layer"], GREEN)
    svg.arrow([(149, 140), (149, 184)])
    svg.arrow([(611, 140), (611, 184)])
    svg.box(230, 280, 300, 56, ["BidirectionalDistill", "AdaptiveLayerDistill, once per direction"], ORANGE)
    svg.arrow([(149, 242), (149, 308), (228, 308)])
    svg.arrow([(611, 242), (611, 308), (532, 308)])
    svg.box(230, 376, 300, 40, ["TransMambaLoss -> backward()"], ORANGE)
    svg.arrow([(380, 336), (380, 374)])
    svg.arrow([(736, 112), (750, 112), (750, 396), (532, 396)])
    svg.text(742, 412, "task loss", anchor="end", font_size=12)
    svg.arrow([(274, 112), (474, 112)], GREY, 1.5, "5 4")
    svg.text(379, 101, "subclone, once", font_size=12)
    svg.text(379, 126, "before training", font_size=12)
    return svg


def losses() -> Svg:
    """Which feature of the student each loss reads, and which of the teacher it meets."""
    svg = Svg(760, 440, "Where each loss attaches to student and teacher")
    top, step = 60, 76
    for side, (left, name, colour) in enumerate(((40, "student", BLUE), (580, "teacher", PURPLE))):
        svg.text(left + 70, 20, name, font_weight="600")
        for layer in range(4):
            label = f"block {layer + 1}" if side == 0 or layer < 3 else "block n, norm"
            svg.box(left, top + step * layer, 140, 40, [label], colour)
            if layer:
                svg.arrow([(left + 70, top + step * layer - 36), (left + 70, top + step * layer - 2)])
        svg.arrow([(left + 70, top + 3 * step + 40), (left + 70, top + 4 * step - 2)])
        svg.box(left, top + 4 * step, 140, 40, ["logits"], colour)
    target = top + 3 * step + 20
    for layer in range(4):
        level = top + step * layer + 14
        svg.arrow([(182, level), (250, level), (480, target - 8), (576, target - 8)], ORANGE)
    svg.text(335, 124, "AdaptiveLayerDistill: every layer to the", anchor="start", font_size=12)
    svg.text(350, 140, "last feature; once per direction", anchor="start", font_size=12)
    svg.arrow([(182, top + 3 * step + 32), (576, top + 3 * step + 32)], GREEN, 1.5, "6 4")
    svg.text(380, top + 3 * step + 48, "LastFeatureDistill", font_size=12)
    for layer in range(3):
        svg.line([(182, top + step * layer + 30), (576, top + step * layer + 30)], GREY, 1, "2 4")
    svg.text(470, top + 18, "LayerwiseDistill: layer to layer", font_size=12)
    svg.arrow([(182, top + 4 * step + 20), (576, top + 4 * step + 20)], BLUE)
    svg.text(380, top + 4 * step + 8, "LogitsDistill", font_size=12)
    svg.arrow([(110, top + 4 * step + 40), (110, 428)])
    svg.text(122, 424, "task loss: labels", anchor="start", font_size=12)
    return svg


def directions() -> Svg:
    """Both scans of a row of tokens, and the teacher in the order of each."""
    svg = Svg(720, 250, "Forward features meet the teacher, backward features the teacher reversed")
    tokens, cell = 6, 46
    for row, (name, colour) in enumerate((("forward", BLUE), ("backward", ORANGE))):
        index = scan_order(name, tokens).index.tolist()
        top = 40 + 112 * row
        svg.text(14, top + 14, f"student, {name}", anchor="start", font_weight="600")
        svg.text(14, top + 62, "teacher" + (", reversed" if row else ""), anchor="start", font_weight="600")
        for step, token in enumerate(index):
            left = 190 + (cell + 12) * step
            svg.box(left, top, cell, 28, [f"s{token + 1}"], colour)
            svg.box(left, top + 48, cell, 28, [f"t{token + 1}"], PURPLE)
            svg.line([(left + cell / 2, top + 28), (left + cell / 2, top + 48)], GREY, 1.5, "3 3")
            if step:
                svg.arrow([(left - 12, top + 14), (left, top + 14)], colour)
        svg.text(560, top + 38, "cosine of each pair", anchor="start", font_size=12)
    svg.text(190 + (cell + 12) * tokens / 2, 16, "step of the scan", font_size=12)
    return svg


def readouts() -> Svg:
    """Which context token the state has read up to when each query token reads it."""
    svg = Svg(720, 250, "State read by each query for the three readouts of CrossMamba")
    kinds = {
        "final": (7, 5, lambda t, q, k: k - 1),
        "aligned": (5, 5, lambda t, q, k: t),
        "progress": (7, 5, lambda t, q, k: math.ceil((t + 1) * k / q) - 1),
    }
    for number, (name, (context, queries, reads)) in enumerate(kinds.items()):
        left, cell = 54 + 232 * number, 22
        svg.text(left + 80, 16, name, font_weight="600")
        for t in range(queries):
            for s in range(context):
                seen = s <= reads(t, queries, context)
                chosen = s == reads(t, queries, context)
                colour = ORANGE if chosen else BLUE if seen else GREY
                svg.rect(left + s * cell, 34 + t * 34, 18, 26, colour, 0.9 if chosen else 0.3 if seen else 0.05)
            svg.text(left - 8, 47 + t * 34, f"q{t + 1}", anchor="end", font_size=11)
        for s in range(context):
            svg.text(left + 9 + s * cell, 214, f"k{s + 1}", font_size=11)
    svg.text(360, 238, "orange: the state that the query reads; blue: what it has seen", font_size=12)
    return svg
