"""Draw an image with its boxes, the bins and samples of one region, the map under it, and the pooled result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from roialign_cli.arrays import Floats
from roialign_cli.config import Settings
from roialign_cli.figures.colours import Colouring, channel_mean, principal
from roialign_cli.figures.places import Places, find_places
from roialign_cli.figures.style import BIN, BOX, SAMPLE, STYLE
from roialign_cli.regions.pooling import Pooled, pool, pool_moved
from roialign_cli.regions.views import LayerView

MARGIN_CELLS = 2  # of the map shown around the RoI
MAX_OUTLINED_SAMPLES = 400  # more are drawn as smaller points without outline


def draw_overlay(
    pixels: npt.NDArray[np.uint8],
    boxes: Floats,
    labels: Sequence[str] | None,
    view: LayerView,
    box: int,
    settings: Settings,
    colour: str,
) -> Figure:
    """Draw one region among those of an image [H, W, 3] with boxes [K, 4]; `colour` is pca or mean."""
    features, stride = view.map_of(box)
    places, pooled = find_places(view, box, settings), _pool(view[box : box + 1], settings)
    cells = features[0].detach().float().cpu().movedim(0, -1)
    vectors = cells.flatten(0, 1)
    colouring = channel_mean(vectors) if colour == "mean" else principal(vectors, 1)
    bins = pooled.features[0].cpu()
    if view.regions.points is not None:
        bins = bins.T[:, :, None]  # a row for each point
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        image, under, result = figure.subplots(1, 3, width_ratios=(1.5, 1.2, 1))
        name = f"box {box}" + (f", {labels[box]}" if labels is not None else "")
        _draw_image(image, pixels, boxes, labels, box)
        _draw_places(image, places.in_image(view, stride), line=0.6)
        image.set_title(f"{name}: {places.text}", loc="left")
        _draw_map(under, cells, colouring, places)
        under.set_title(f"{view.layer.name}, stride {stride}: the map under it", loc="left")
        colours = colouring(bins.movedim(0, -1))[..., 0].numpy()
        drawn = result.imshow(colours, cmap="viridis", vmin=0, vmax=1)
        if pooled.coverage is not None:
            _write_coverage(result, pooled.coverage[0].cpu().numpy())
        what = "mean of the channels" if colour == "mean" else "first principal component"
        result.set_title("pooled, {} x {}".format(*colours.shape), loc="left")
        result.set_xticks([])
        result.set_yticks([])
        figure.colorbar(drawn, ax=result, label=what, shrink=0.7, ticks=[])
        return figure


@torch.inference_mode()
def _pool(view: LayerView, settings: Settings) -> Pooled:
    """Pool all regions of a view."""
    if view.deform is None:
        return pool(view.maps, view.layer, view.regions, view.levels, settings)
    return pool_moved(view.maps, view.layer, view.regions, view.levels, settings, view.deform)


def _draw_image(
    axes: Axes, pixels: npt.NDArray[np.uint8], boxes: Floats, labels: Sequence[str] | None, box: int
) -> None:
    """Draw image and boxes; pixel i extends from i to i + 1, as box coordinates do."""
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0))
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        line = 2.0 if k == box else 0.8
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX, linewidth=line))
        if labels is not None:
            style = {"facecolor": BOX, "edgecolor": "none", "pad": 1.0, "alpha": 1.0 if k == box else 0.6}
            at = min(max(x1, 0), width), min(max(y1, 0), height)
            axes.text(*at, labels[k], color="white", fontsize=7, va="bottom", bbox=style, clip_on=True)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _draw_map(axes: Axes, cells: Tensor, colouring: Colouring, places: Places) -> None:
    """Draw the map around a region with its bins and samples."""
    axes.imshow(colouring(cells)[..., 0].numpy(), cmap="viridis", vmin=0, vmax=1)
    _draw_places(axes, places, line=1.0)
    height, width = cells.shape[:2]
    left, right, top, bottom = places.bounds
    left, right = np.clip([left - MARGIN_CELLS, right + MARGIN_CELLS], -0.5, width - 0.5)
    top, bottom = np.clip([top - MARGIN_CELLS, bottom + MARGIN_CELLS], -0.5, height - 0.5)
    axes.set_xlim(left, max(right, left + 1))
    axes.set_ylim(max(bottom, top + 1), top)


def _draw_places(axes: Axes, places: Places, line: float) -> None:
    """Draw the shape of a mask as an area, bins as lines, and samples as points."""
    axes.add_collection(
        PolyCollection(list(places.shape), facecolors=BOX, edgecolors="none", alpha=0.45, antialiased=False)
    )
    axes.add_collection(PolyCollection(list(places.bins), facecolors="none", edgecolors=BIN, linewidths=line))
    few = len(places.samples) <= MAX_OUTLINED_SAMPLES
    edge = {"edgecolors": "white", "linewidths": 0.3} if few else {"linewidths": 0}
    axes.scatter(places.samples[:, 0], places.samples[:, 1], s=9.0 if few else 2.0, color=SAMPLE, zorder=3, **edge)


def _write_coverage(axes: Axes, coverage: npt.NDArray[np.float32]) -> None:
    """Write into each bin how much of it the mask covers, in percent."""
    for (p, q), share in np.ndenumerate(coverage):
        style = {"facecolor": "black", "edgecolor": "none", "pad": 0.8, "alpha": 0.5}
        axes.text(q, p, f"{100 * share:.0f}", color="white", fontsize=6, ha="center", va="center", bbox=style)
    axes.set_xlabel("numbers: coverage in percent")
