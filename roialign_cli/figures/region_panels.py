"""Draw the pooling of one rotated box or one mask on the map that an explanation makes up: bins, samples, pooled output."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from roialign_cli.config import Settings
from roialign_cli.figures.places import Points, product_bins, turned_places
from roialign_cli.figures.style import BOX, SAMPLE, STYLE
from roialign_cli.ops.explain_regions import MaskExplanation, RotatedExplanation
from roialign_cli.ops.reference import Map


def draw_rotated_panels(told: RotatedExplanation, spatial_scale: float, settings: Settings) -> Figure:
    """Draw bins and samples of a rotated box on the map, and the means of the bins."""
    places = turned_places(np.array(told.roi), 1 / spatial_scale, told.features.shape, settings)
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        place, pooled = figure.subplots(1, 2)
        _draw_map(place, told.features, places.bins)
        place.plot(places.samples[:, 0], places.samples[:, 1], ".", color=SAMPLE)
        place.set_title(f"{told.roi[4]:g} degrees, {places.text}", loc="left")
        _draw_numbers(pooled, told.pooled, "pooled: the mean over the samples")
        return figure


def draw_mask_panels(told: MaskExplanation) -> Figure:
    """Draw a mask and the bins of its box on the map, how much of each bin it covers, and the means over mask and bin."""
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 4.5), layout="constrained")
        place, coverage, pooled = figure.subplots(1, 3)
        _draw_map(place, told.features, product_bins(told.y, told.x))
        place.add_collection(PolyCollection([np.array(told.corners)], facecolors=BOX, edgecolors=BOX, alpha=0.4))
        place.set_title("mask and bins", loc="left")
        _draw_numbers(coverage, told.coverage, "coverage: the share of each bin")
        _draw_numbers(pooled, told.pooled, "pooled: the mean over mask and bin")
        return figure


def _draw_map(axes: Axes, features: Map, bins: Points) -> None:
    """Draw cells, which are squares centred on integers, and bins."""
    axes.imshow(features, cmap="Greys", alpha=0.35)
    axes.add_collection(PolyCollection(list(bins), facecolors="none", edgecolors=BOX))


def _draw_numbers(axes: Axes, values: Map, title: str) -> None:
    """Draw values with their numbers."""
    axes.imshow(values, cmap="Greys", alpha=0.35)
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f"{value:.4g}", ha="center", va="center")
    axes.set_title(title, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
