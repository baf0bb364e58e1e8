"""Draw the figure of the README, from the numbers of notebook 08.

    python -m tests.benchmarks.draw_photographs FOUND.pt docs/assets/photographs.svg

FOUND.pt is written by a last cell added to the notebook before it is executed:

    found = {"maps": {name: colours(x) for name, x in maps.items()}, "curves": curves}
    torch.save(found | {"accuracies": accuracies, "majority": majority}, "FOUND.pt")
"""

import sys

import matplotlib.pyplot as plt
import torch


def draw(found, path):
    """Draw maps of teacher and student on the left, the curve on the right."""
    plt.rcParams.update({"svg.hashsalt": "transmamba", "svg.fonttype": "none", "font.size": 9})
    figure = plt.figure(figsize=(10, 3.2))
    left, right = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    rows = left.subplots(len(found["maps"]), 6)
    for row, (name, maps) in zip(rows, found["maps"].items(), strict=True):
        row[0].set_ylabel(name)
        for axis, picture in zip(row, maps, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    left.suptitle("patch features, three principal axes of the teacher as colours")
    axis = right.subplots()
    for name, curve in found["curves"].items():
        axis.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=name)
    axis.set(xlabel="seconds", ylabel="centred cosine to DINOv2", ylim=(-0.05, 1))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    draw(torch.load(sys.argv[1]), sys.argv[2])
