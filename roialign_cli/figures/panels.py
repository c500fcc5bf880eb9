"""Draw RoI Align of one RoI in five panels: mapping, bins, samples, one bilinear lookup, pooled output."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from roialign_cli.figures.style import BOX, SAMPLE, STYLE
from roialign_cli.ops.explain import Explanation
from roialign_cli.ops.reference import Axis, Map

MAX_NUMBERED_CELLS = 12  # per side, up to which values are written into cells
GREYS = "Greys"


def draw_panels(explanation: Explanation) -> Figure:
    """Draw the five panels. Cells are squares centred on integers, so cell 0 extends from -0.5 to 0.5."""
    with rc_context(STYLE):
        height = 2.2 + 2.4 * min(2.0, explanation.features.shape[0] / explanation.features.shape[1])
        figure = Figure(figsize=(16, height), layout="constrained")
        mapping, bins, samples, lookup, pooled = figure.subplots(1, 5)
        shift = " - 0.5" if explanation.aligned else ""
        _map(mapping, explanation.features, "1  mapping: pixels to cells")
        _outline(mapping, explanation)
        mapping.set_xlabel(
            f"x: {explanation.roi[0]:g} · {explanation.spatial_scale:g}{shift} = {explanation.x.start:.4g}, …"
        )
        _map(bins, explanation.features, f"2  {explanation.output_size[0]} x {explanation.output_size[1]} bins")
        _outline(bins, explanation)
        _bins(bins, explanation)
        bins.set_xlabel(f"each {explanation.x.bin:.4g} wide, {explanation.y.bin:.4g} high")
        _map(samples, explanation.features, f"3  {explanation.y.grid} x {explanation.x.grid} samples per bin")
        _outline(samples, explanation)
        _bins(samples, explanation)
        points = [point for p, q in _all_bins(explanation) for point in explanation.samples(p, q)]
        samples.plot(
            [x for x, _ in points], [y for _, y in points], ".", color=SAMPLE, markersize=5 if len(points) < 200 else 2
        )
        kind = "adaptive" if explanation.sampling_ratio == 0 else "fixed"
        samples.set_xlabel(f"{kind}; each is a bilinear lookup")
        _lookup(lookup, explanation)
        _pooled(pooled, explanation)
        return figure


def _all_bins(explanation: Explanation) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of every bin."""
    return ((p, q) for p in range(explanation.output_size[0]) for q in range(explanation.output_size[1]))


def _map(axes: Axes, features: Map, title: str) -> None:
    """Draw the map as numbered cells."""
    axes.imshow(features, cmap=GREYS, alpha=0.35)
    axes.set_title(title, loc="left", fontsize=10)
    height, width = features.shape
    axes.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#999999", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    if max(features.shape) <= MAX_NUMBERED_CELLS:
        axes.set_xticks(range(width))
        axes.set_yticks(range(height))
        for row in range(height):
            for column in range(width):
                axes.text(
                    column,
                    row - 0.3,
                    f"{features[row, column]:g}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="#555555",
                )


def _span(axis: Axis) -> tuple[float, float]:
    """Return where the bins of an axis start and end."""
    return axis.start, axis.start + axis.bins * axis.bin


def _outline(axes: Axes, explanation: Explanation) -> None:
    """Outline the RoI."""
    (left, right), (top, bottom) = _span(explanation.x), _span(explanation.y)
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=BOX, linewidth=2))
    axes.set_xlim(min(-0.5, left - 0.3), max(explanation.features.shape[1] - 0.5, right + 0.3))
    axes.set_ylim(max(explanation.features.shape[0] - 0.5, bottom + 0.3), min(-0.5, top - 0.3))


def _bins(axes: Axes, explanation: Explanation) -> None:
    """Draw the edges between bins."""
    (left, right), (top, bottom) = _span(explanation.x), _span(explanation.y)
    axes.vlines([explanation.x.edges(q)[0] for q in range(1, explanation.x.bins)], top, bottom, color=BOX, linewidth=1)
    axes.hlines([explanation.y.edges(p)[0] for p in range(1, explanation.y.bins)], left, right, color=BOX, linewidth=1)


def _lookup(axes: Axes, explanation: Explanation) -> None:
    """Draw the cells around the first sample, with their weights."""
    look = explanation.lookup
    axes.set_title("4  one bilinear lookup", loc="left", fontsize=10)
    if look is None or look.clamped is None:
        axes.text(
            0.5, 0.5, "no sample" if look is None else "outside: counts as 0", ha="center", transform=axes.transAxes
        )
        axes.set_axis_off()
        return
    columns, rows = ({cell[i] for cell in look.cells} for i in range(2))
    axes.imshow(explanation.features, cmap=GREYS, alpha=0.35)
    axes.set_xlim(min(columns) - 0.5, max(columns) + 0.5)
    axes.set_ylim(max(rows) + 0.5, min(rows) - 0.5)
    axes.set_xticks(sorted(columns))
    axes.set_yticks(sorted(rows))
    axes.vlines([column - 0.5 for column in columns], *axes.get_ylim(), color="#999999", linewidth=0.5)
    axes.hlines([row - 0.5 for row in rows], *axes.get_xlim(), color="#999999", linewidth=0.5)
    for (column, row), weight, value in zip(look.cells, look.weights, look.values, strict=True):
        axes.plot(
            [look.clamped[0], column], [look.clamped[1], row], color=SAMPLE, linewidth=0.5 + 3 * weight, alpha=0.6
        )
        axes.text(column, row + 0.3, f"{value:g} · {weight:.3f}", ha="center", va="center", fontsize=8)
    axes.plot(*look.clamped, "o", color=SAMPLE, markersize=6)
    axes.set_xlabel(f"({look.x:.4g}, {look.y:.4g}) → {look.value:.4g}")


def _pooled(axes: Axes, explanation: Explanation) -> None:
    """Draw the pooled values."""
    axes.imshow(explanation.pooled, cmap=GREYS, alpha=0.35)
    axes.set_title("5  the mean of each bin", loc="left", fontsize=10)
    axes.set_xticks(range(explanation.output_size[1]))
    axes.set_yticks(range(explanation.output_size[0]))
    if max(explanation.output_size) <= MAX_NUMBERED_CELLS:
        for p, q in _all_bins(explanation):
            axes.text(
                q,
                p,
                f"{explanation.pooled[p, q]:.4g}",
                ha="center",
                va="center",
                fontsize=9 if max(explanation.output_size) < 5 else 6,
            )
