"""Draw separable_weights.png: the per-axis weights of one RoI, and the weights of one bin as their product.

    python docs/pictures/separable_weights.py

The samples are those of `roialign_cli.ops.reference`, the definition that the kernels are tested against.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from roialign_cli.ops.reference import Axis, axis

HEIGHT, WIDTH = 8, 11  # cells of the map
ROI = (2.3, 1.4, 9.5, 6.8)  # x1, y1, x2, y2 in cells
ROWS, COLUMNS = 2, 3  # bins
ROW, COLUMN = 1, 1  # the bin that is followed
BLUE, ORANGE, DARK = "#4878a8", "#c8641a", "#7a3a0c"

Weights = npt.NDArray[np.float64]


def weights(of: Axis, size: int) -> Weights:
    """Return the weights [bins, size] of the mean over samples along one axis."""
    found = np.zeros((of.bins, size))
    for p in range(of.bins):
        for at in of.samples(p):
            if -1 <= at <= size:
                clamped = min(max(at, 0.0), size - 1.0)
                low = int(clamped)
                found[p, low] += (1 - (clamped - low)) / of.grid
                found[p, min(low + 1, size - 1)] += (clamped - low) / of.grid
    return found


def draw_map(axes: Axes, y: Axis, x: Axis, wy: Weights, wx: Weights) -> None:
    """The map with the RoI, its bins and samples; the cells of one bin shaded by their weight."""
    product = np.outer(wy[ROW], wx[COLUMN])
    shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#f3b27a"])
    axes.imshow(product, cmap=shades, vmin=0, vmax=product.max(), aspect="auto")
    for r, c in np.argwhere(product > 0):
        halo = [withStroke(linewidth=2, foreground="white")]
        share = f"{product[r, c]:.2f}"
        axes.text(c, r + 0.27, share, ha="center", va="center", fontsize=7, color=DARK, path_effects=halo, zorder=5)
    for line in range(HEIGHT + 1):
        axes.axhline(line - 0.5, color="#d9d9d9", linewidth=0.6, zorder=0.5)
    for line in range(WIDTH + 1):
        axes.axvline(line - 0.5, color="#d9d9d9", linewidth=0.6, zorder=0.5)
    for p in range(ROWS):
        for q in range(COLUMNS):
            (top, bottom), (left, right) = y.edges(p), x.edges(q)
            followed = (p, q) == (ROW, COLUMN)
            edge = {"edgecolor": ORANGE if followed else BLUE, "linewidth": 2.2 if followed else 1.1}
            axes.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, zorder=3 if followed else 2, **edge)
            )
            points = [(at_x, at_y) for at_y in y.samples(p) for at_x in x.samples(q)]
            axes.scatter(*zip(*points, strict=True), s=11, color=DARK if followed else BLUE, zorder=4)
    axes.set_xlim(-0.5, WIDTH - 0.5)
    axes.set_ylim(HEIGHT - 0.5, -0.5)
    axes.set_xticks(range(WIDTH))
    axes.set_yticks(range(HEIGHT))
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("cell x", fontsize=9)
    axes.set_ylabel("cell y", fontsize=9)


def draw_axis(axes: Axes, of: Weights, followed: int, *, horizontal: bool, name: str) -> None:
    """The weights of all bins of one axis as bars; those of the followed bin in colour."""
    cells = np.arange(of.shape[1])
    draw = axes.barh if horizontal else axes.bar
    base = np.zeros(of.shape[1])
    for p in [followed, *(p for p in range(len(of)) if p != followed)]:
        colour = ORANGE if p == followed else "#c9d6e4"
        stack = {"left": base} if horizontal else {"bottom": base}
        draw(cells, of[p], 0.8, color=colour, **stack)
        base = base + of[p]
    for cell in np.flatnonzero(of[followed]):
        value = of[followed, cell]
        place = (value / 2, cell) if horizontal else (cell, value / 2)
        axes.text(*place, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7, length=2)
    (axes.set_xlabel if horizontal else axes.set_ylabel)(name, fontsize=9)
    (axes.set_xticks if horizontal else axes.set_yticks)([0, 0.5])


def main() -> None:
    """Draw the picture beside this file."""
    x = axis(ROI[0], ROI[2], 1.0, COLUMNS, 0, aligned=True)
    y = axis(ROI[1], ROI[3], 1.0, ROWS, 0, aligned=True)
    wx, wy = weights(x, WIDTH), weights(y, HEIGHT)
    figure = Figure(figsize=(8.0, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 4.6], height_ratios=[1, 3.4])
    middle = figure.add_subplot(grid[1, 1])
    draw_map(middle, y, x, wy, wx)
    top = figure.add_subplot(grid[0, 1], sharex=middle)
    draw_axis(top, wx, COLUMN, horizontal=False, name=f"wx[{COLUMN}]")
    top.tick_params(labelbottom=False)
    left = figure.add_subplot(grid[1, 0], sharey=middle)
    draw_axis(left, wy, ROW, horizontal=True, name=f"wy[{ROW}]")
    left.invert_xaxis()
    left.spines[["left"]].set_visible(False)
    left.spines[["right"]].set_visible(True)
    left.tick_params(labelleft=False, left=False)
    corner = figure.add_subplot(grid[0, 0])
    corner.axis("off")
    corner.text(
        0.0, 0.5, f"weight of cell (y, x)\nin bin ({ROW}, {COLUMN}):\nwy[{ROW}, y] · wx[{COLUMN}, x]",
        fontsize=9, va="center", color=ORANGE, transform=corner.transAxes,
    )  # fmt: skip
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
