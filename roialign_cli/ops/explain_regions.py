"""Explain the arithmetic of a rotated box and of a mask, step by step, with the numbers of the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from roialign_cli.errors import ConfigError
from roialign_cli.ops.explain import Lookup, bilinear_lookup, made_up_map
from roialign_cli.ops.masked import roi_align_masked
from roialign_cli.ops.reference import Axis, Map, axis
from roialign_cli.ops.rotated import roi_align_rotated

ROTATED_EXAMPLE = "6,4,8,4,30"
MASK_EXAMPLE = "1,1,7,1,7,5"


@dataclass(frozen=True)
class RotatedExplanation:
    """Hold every step for a rotated box (centre x, centre y, width, height, angle) on a map [H, W] with 10 y + x in its cells.

    centre and sides are in map cells, `bin` is (width, height) of a bin and grid (across, down) its samples. `offset` is where
    the first sample of the first bin lies from the centre, on the axes of the box, `place` where that is on the map.
    """

    roi: tuple[float, float, float, float, float]
    centre: tuple[float, float]
    sides: tuple[float, float]
    bin: tuple[float, float]
    grid: tuple[int, int]
    offset: tuple[float, float]
    place: tuple[float, float]
    lookup: Lookup
    features: Map
    pooled: Map


@dataclass(frozen=True)
class MaskExplanation:
    """Hold every step for a polygon in one box (x1, y1, x2, y2) on a map [H, W] with 10 y + x in its cells.

    corners: of the polygon, in map cells. first: the first bin (row, column) that the mask touches. cells (x, y) and weights:
    the integral mean over mask and bin is the sum of these weights times the cells' values.
    """

    roi: tuple[float, float, float, float]
    corners: tuple[tuple[float, float], ...]
    y: Axis
    x: Axis
    first: tuple[int, int] | None
    cells: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    values: tuple[float, ...]
    features: Map
    coverage: Map
    pooled: Map


def parse_numbers(what: str, text: str, count: int | None, example: str) -> tuple[float, ...]:
    """Parse finite numbers separated by commas: `count` of them, or at least six in pairs. Raises ConfigError."""
    try:
        numbers = tuple(float(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        numbers = (math.nan,)
    right = len(numbers) == count if count is not None else len(numbers) >= 6 and len(numbers) % 2 == 0
    if not right or not all(map(math.isfinite, numbers)):
        expected = f"{count} finite numbers" if count is not None else "finite x and y of at least 3 corners"
        raise ConfigError("roi", f"{what}: expected {expected}, found {text!r}", example)
    return numbers


def explain_rotated(
    roi: tuple[float, ...], output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> RotatedExplanation:
    """Return every step for one rotated box, angles counter-clockwise. Raises ConfigError if the map would be too large."""
    x, y, width, height, angle = roi
    if width < 0 or height < 0:
        raise ConfigError("roi", f"roi: expected width and height of at least 0, found {width:g} and {height:g}")
    reach = math.hypot(width, height) / 2
    features = made_up_map(y + reach, x + reach, spatial_scale)
    offset, least = (0.5, 0.0) if aligned else (0.0, 1.0)
    centre = (x * spatial_scale - offset, y * spatial_scale - offset)
    sides = (max(width * spatial_scale, least), max(height * spatial_scale, least))
    bin_sides = (sides[0] / output_size[1], sides[1] / output_size[0])
    grid = (sampling_ratio or math.ceil(bin_sides[0]), sampling_ratio or math.ceil(bin_sides[1]))
    xx, yy = (bins / max(n, 1) / 2 - whole / 2 for bins, n, whole in zip(bin_sides, grid, sides, strict=True))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    place = (yy * sin + xx * cos + centre[0], yy * cos - xx * sin + centre[1])
    pooled = roi_align_rotated(
        torch.from_numpy(features)[None, None], torch.tensor([[0.0, *roi]], dtype=torch.float64), output_size,
        spatial_scale=spatial_scale, sampling_ratio=sampling_ratio, aligned=aligned, kernel="reference",
    )  # fmt: skip
    lookup = bilinear_lookup(features, *place)
    return RotatedExplanation(
        (x, y, width, height, angle),
        centre,
        sides,
        bin_sides,
        grid,
        (xx, yy),
        place,
        lookup,
        features,
        pooled[0, 0].numpy(),
    )


def explain_mask(
    roi: tuple[float, ...],
    polygon: tuple[float, ...],
    output_size: tuple[int, int],
    spatial_scale: float,
    aligned: bool,
) -> MaskExplanation:
    """Return every step for a polygon in one box. Raises ConfigError if the map would be too large."""
    x1, y1, x2, y2 = roi
    features = made_up_map(y2, x2, spatial_scale)
    offset = 0.5 if aligned else 0.0
    y = axis(y1, y2, spatial_scale, output_size[0], 0, aligned)
    x = axis(x1, x2, spatial_scale, output_size[1], 0, aligned)
    rois, masks = torch.tensor([[0.0, *roi]], dtype=torch.float64), [[list(polygon)]]

    def pool(maps: Map) -> tuple[Map, Map]:
        found, covered = roi_align_masked(
            torch.from_numpy(maps)[None], rois, masks, output_size, spatial_scale=spatial_scale, aligned=aligned,
            kernel="reference",
        )  # fmt: skip
        return found[0].numpy(), covered[0].double().numpy()

    pooled, coverage = pool(features[None])
    touched = np.argwhere(coverage > 0)
    first = (int(touched[0, 0]), int(touched[0, 1])) if len(touched) else None
    cells: tuple[tuple[int, int], ...] = ()
    weights: tuple[float, ...] = ()
    if first is not None:  # the weight of a cell is what a map with 1 in that cell and 0 elsewhere gives
        height, width = features.shape
        each, _ = pool(np.eye(height * width).reshape(-1, height, width))
        of_bin = each[:, first[0], first[1]]
        used = np.flatnonzero(of_bin)
        cells = tuple((int(cell % width), int(cell // width)) for cell in used)
        weights = tuple(of_bin[used].tolist())
    corners = tuple(
        (u * spatial_scale - offset, v * spatial_scale - offset)
        for u, v in zip(polygon[::2], polygon[1::2], strict=True)
    )
    values = tuple(float(features[row, column]) for column, row in cells)
    return MaskExplanation(
        (x1, y1, x2, y2), corners, y, x, first, cells, weights, values, features, coverage, pooled[0]
    )
