"""Draw an image with its boxes, the bins and samples of one of them, the map under it, and the pooled result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from roialign_cli.arrays import Floats
from roialign_cli.config import Settings
from roialign_cli.figures.colours import Colouring, channel_mean, principal
from roialign_cli.figures.style import BIN, BOX, SAMPLE, STYLE
from roialign_cli.ops.reference import Axis, axis
from roialign_cli.regions.pooling import pool
from roialign_cli.regions.views import LayerView

MARGIN_CELLS = 2  # of the map shown around the RoI
MAX_OUTLINED_SAMPLES = 400  # more are drawn as smaller points without outline


@dataclass(frozen=True)
class Grid:
    """Hold bins and samples of one RoI along y and x, in map cells, whose centres are integers.

    `size` is that of the map: samples outside of it are left out, since a huge box has too many.
    """

    y: Axis
    x: Axis
    size: tuple[int, int]

    @property
    def edges(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Edges of the bins along (y, x), [P + 1] each."""
        y, x = (np.array([along.start + along.bin * p for p in range(along.bins + 1)]) for along in (self.y, self.x))
        return y, x

    @property
    def samples(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Coordinates of the samples on the map along (y, x); the samples are their product."""
        y, x = (
            np.array([at for p in range(along.bins) for at in along.samples(p, cells)], np.float64)
            for along, cells in zip((self.y, self.x), self.size, strict=True)
        )
        return y, x


def make_grid(view: LayerView, box: int, settings: Settings) -> Grid:
    """Return where RoI Align of a box samples its map."""
    features, stride = view.map_of(box)
    _, x1, y1, x2, y2 = view.regions.rois[box].tolist()
    ratio, aligned = settings.sampling_ratio, settings.aligned
    height, width = settings.output_size
    y, x = axis(y1, y2, 1 / stride, height, ratio, aligned), axis(x1, x2, 1 / stride, width, ratio, aligned)
    return Grid(y, x, (features.shape[2], features.shape[3]))


def in_image(
    view: LayerView, stride: int, along: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Convert map cells along (y, x) to pixels of the original image: the centre of a cell is that of its `stride` pixels."""
    y, x = ((cells + 0.5) * stride / zoom for cells, zoom in zip(along, view.zoom, strict=True))
    return y, x


def draw_overlay(
    pixels: npt.NDArray[np.uint8],
    boxes: Floats,
    labels: Sequence[str] | None,
    view: LayerView,
    box: int,
    settings: Settings,
    colour: str,
) -> Figure:
    """Draw one box among the boxes [K, 4] of an image [H, W, 3]; `colour` is pca or mean."""
    grid, (features, stride) = make_grid(view, box, settings), view.map_of(box)
    with torch.inference_mode():
        levels = None if view.levels is None else view.levels[box : box + 1]
        pooled = pool(view.maps, view.layer, view.regions[box : box + 1], levels, settings).features[0].cpu()
    cells = features[0].detach().float().cpu().movedim(0, -1)
    vectors = cells.flatten(0, 1)
    colouring = channel_mean(vectors) if colour == "mean" else principal(vectors, 1)
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        image, under, result = figure.subplots(1, 3, width_ratios=(1.5, 1.2, 1))
        _draw_image(image, pixels, boxes, labels, view, box, grid, stride)
        _draw_map(under, cells, colouring, grid)
        under.set_title(f"{view.layer.name}, stride {stride}: the map under it", loc="left")
        colours = colouring(pooled.movedim(0, -1))[..., 0].numpy()
        drawn = result.imshow(colours, cmap="viridis", vmin=0, vmax=1)
        what = "mean of the channels" if colour == "mean" else "first principal component"
        result.set_title("pooled, {} x {}".format(*settings.output_size), loc="left")
        result.set_xticks([])
        result.set_yticks([])
        figure.colorbar(drawn, ax=result, label=what, shrink=0.7, ticks=[])
        return figure


def _draw_image(
    axes: Axes,
    pixels: npt.NDArray[np.uint8],
    boxes: Floats,
    labels: Sequence[str] | None,
    view: LayerView,
    box: int,
    grid: Grid,
    stride: int,
) -> None:
    """Draw image, boxes, bins and samples; pixel i extends from i to i + 1, as box coordinates do."""
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0))
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        line = 2.0 if k == box else 0.8
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX, linewidth=line))
        if labels is not None:
            style = {"facecolor": BOX, "edgecolor": "none", "pad": 1.0, "alpha": 1.0 if k == box else 0.6}
            at = min(max(x1, 0), width), min(max(y1, 0), height)
            axes.text(*at, labels[k], color="white", fontsize=7, va="bottom", bbox=style, clip_on=True)
    _draw_grid(axes, in_image(view, stride, grid.edges), in_image(view, stride, grid.samples), line=0.6)
    name = f"box {box}" + (f", {labels[box]}" if labels is not None else "")
    count = f"{grid.y.grid} x {grid.x.grid} samples in each of {grid.y.bins} x {grid.x.bins} bins"
    axes.set_title(f"{name}: {count}", loc="left")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _draw_map(axes: Axes, cells: Tensor, colouring: Colouring, grid: Grid) -> None:
    """Draw the map around the RoI with bins and samples."""
    axes.imshow(colouring(cells)[..., 0].numpy(), cmap="viridis", vmin=0, vmax=1)
    y, x = grid.edges
    _draw_grid(axes, grid.edges, grid.samples, line=1.0)
    height, width = cells.shape[:2]
    left, right = np.clip([x[0] - MARGIN_CELLS, x[-1] + MARGIN_CELLS], -0.5, width - 0.5)
    top, bottom = np.clip([y[0] - MARGIN_CELLS, y[-1] + MARGIN_CELLS], -0.5, height - 0.5)
    axes.set_xlim(left, max(right, left + 1))
    axes.set_ylim(max(bottom, top + 1), top)


def _draw_grid(
    axes: Axes,
    edges: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    samples: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    line: float,
) -> None:
    """Draw bins as lines and samples as points."""
    (y, x), (down, across) = edges, samples
    axes.vlines(x, y[0], y[-1], color=BIN, linewidth=line)
    axes.hlines(y, x[0], x[-1], color=BIN, linewidth=line)
    points = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2)
    few = len(points) <= MAX_OUTLINED_SAMPLES
    edge = {"edgecolors": "white", "linewidths": 0.3} if few else {"linewidths": 0}
    axes.scatter(points[:, 0], points[:, 1], s=9.0 if few else 2.0, color=SAMPLE, zorder=3, **edge)
