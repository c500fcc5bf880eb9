"""Explain the arithmetic of RoI Align on one RoI, step by step, with the numbers of the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from roialign_cli.errors import ConfigError
from roialign_cli.ops import roi_align
from roialign_cli.ops.reference import Axis, Map, axis, interpolate

EXAMPLE = "0.8,0,2.4,4.5"  # with 2 x 2 bins, unit scale, not aligned
MAX_SAMPLES = 200_000  # each is computed by itself; this many take some seconds
MAX_MAP_CELLS = 256  # per side of the map that an explanation makes up


@dataclass(frozen=True)
class Lookup:
    """Hold one bilinear lookup at (x, y) in map cells: up to four cells (x, y), their weights and values, and the sum.

    `clamped` is the point that was looked up, or None if the sample is so far outside that it counts as zero.
    """

    x: float
    y: float
    clamped: tuple[float, float] | None
    cells: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    values: tuple[float, ...]
    value: float


@dataclass(frozen=True)
class Explanation:
    """Hold every step for one RoI (x1, y1, x2, y2) in image pixels on a map [H, W] whose cell (x, y) holds 10 y + x.

    `lookup` is the first sample of the first bin, None if bins have no samples. pooled is [PH, PW].
    """

    roi: tuple[float, float, float, float]
    output_size: tuple[int, int]
    spatial_scale: float
    sampling_ratio: int
    aligned: bool
    y: Axis
    x: Axis
    features: Map
    lookup: Lookup | None
    pooled: Map

    def samples(self, p: int, q: int) -> list[tuple[float, float]]:
        """Return the samples (x, y) of the bin in row p and column q, in map cells."""
        return [(x, y) for y in self.y.samples(p) for x in self.x.samples(q)]


def parse_roi(text: str) -> tuple[float, float, float, float]:
    """Parse `x1,y1,x2,y2`; raise ConfigError if these are not four finite numbers in order."""
    try:
        x1, y1, x2, y2 = (float(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        message = f"roi: expected four numbers x1,y1,x2,y2, or with --region rotated five, found {text!r}"
        raise ConfigError("roi", message, EXAMPLE) from None
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 < x1 or y2 < y1:
        raise ConfigError("roi", f"roi: expected finite numbers, x2 >= x1 and y2 >= y1, found {text!r}", EXAMPLE)
    return x1, y1, x2, y2


def explain(
    roi: tuple[float, float, float, float],
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Explanation:
    """Return every step for one RoI on a made-up map just large enough; raise ConfigError if the map would be too large."""
    features = made_up_map(roi[3], roi[2], spatial_scale)
    y = axis(roi[1], roi[3], spatial_scale, output_size[0], sampling_ratio, aligned)
    x = axis(roi[0], roi[2], spatial_scale, output_size[1], sampling_ratio, aligned)
    samples = y.bins * y.grid * x.bins * x.grid
    if samples > MAX_SAMPLES:
        found = f"expected at most {MAX_SAMPLES} samples to explain, found {samples}"
        raise ConfigError("roi", f"roi: {found}", "a smaller RoI, or a smaller sampling ratio")
    points = [(x.samples(0)[0], y.samples(0)[0])] if x.grid and y.grid else []
    pooled = roi_align(
        torch.from_numpy(features)[None, None], torch.tensor([[0.0, *roi]], dtype=torch.float64), output_size,
        spatial_scale=spatial_scale, sampling_ratio=sampling_ratio, aligned=aligned, kernel="reference",
    )  # fmt: skip
    lookup = bilinear_lookup(features, *points[0]) if points else None
    return Explanation(
        roi, output_size, spatial_scale, sampling_ratio, aligned, y, x, features, lookup, pooled[0, 0].numpy()
    )


def made_up_map(bottom: float, right: float, spatial_scale: float) -> Map:
    """Return a map [H, W] with 10 y + x in its cells, just large enough for a region that ends there, in image pixels.

    Raises ConfigError if it would be too large.
    """
    sides = [max(2, math.ceil(high * spatial_scale) + 2) for high in (bottom, right)]
    if max(sides) > MAX_MAP_CELLS:
        found = f"one of {sides[0]} x {sides[1]}"
        raise ConfigError(
            "roi", f"roi: expected a map of at most {MAX_MAP_CELLS} cells a side, found {found}", "a smaller scale"
        )
    made: Map = np.add.outer(10.0 * np.arange(sides[0]), np.arange(float(sides[1]))).astype(np.float64)
    return made


def bilinear_lookup(features: Map, x: float, y: float) -> Lookup:
    """Return the cells of a map [H, W] around a point and their weights, including cells of weight zero inside the map."""
    height, width = features.shape
    value = float(interpolate(features[None], y, x)[0])
    if y < -1 or y > height or x < -1 or x > width:
        return Lookup(x, y, None, (), (), (), value)
    clamped = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = (int(coordinate) for coordinate in clamped)
    fx, fy = clamped[0] - left, clamped[1] - top
    weights = {
        (left, top): (1 - fx) * (1 - fy), (left + 1, top): fx * (1 - fy),
        (left, top + 1): (1 - fx) * fy, (left + 1, top + 1): fx * fy,
    }  # fmt: skip
    cells = tuple(cell for cell in weights if cell[0] < width and cell[1] < height)
    values = tuple(float(features[row, column]) for column, row in cells)
    return Lookup(x, y, clamped, cells, tuple(weights[cell] for cell in cells), values, value)
