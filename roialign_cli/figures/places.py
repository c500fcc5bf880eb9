"""Find where a region is pooled: its bins, its samples and its shape, in map cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from roialign_cli.config import Settings
from roialign_cli.ops.deformable import GAMMA
from roialign_cli.ops.reference import Axis, axis
from roialign_cli.regions.pooling import find_moves
from roialign_cli.regions.views import LayerView
from roialign_cli.shapes import rotated_corners

Points = npt.NDArray[np.float64]  # [..., 2], u and v in map cells, whose centres are integers
MAX_SAMPLES = 200_000  # that are drawn


@dataclass(frozen=True)
class Places:
    """Hold where a region is pooled, in map cells.

    bins [B, 4, 2]: corners. samples [S, 2], those on the map. shape [T, 4, 2]: the pieces of a mask, otherwise empty. `grid` is
    the samples per bin, such as 2 x 3, or what stands for them; `text` says it for people.
    """

    bins: Points
    samples: Points
    shape: Points
    grid: str
    text: str

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The lowest u, highest u, lowest v and highest v of bins and samples."""
        points = np.concatenate([self.bins.reshape(-1, 2), self.samples])
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return float(left), float(right), float(top), float(bottom)

    def in_image(self, view: LayerView, stride: int) -> Places:
        """Return the places in pixels of the original image: the centre of a cell is that of its `stride` pixels."""
        scale = stride / np.array(view.zoom[::-1])
        bins, samples, shape = ((part + 0.5) * scale for part in (self.bins, self.samples, self.shape))
        return Places(bins, samples, shape, self.grid, self.text)


def find_places(view: LayerView, index: int, settings: Settings) -> Places:
    """Return where a region of a view is pooled."""
    features, stride = view.map_of(index)
    size = (features.shape[2], features.shape[3])
    region = view.regions[index : index + 1]
    offset = 0.5 if settings.aligned else 0.0
    nothing = np.empty((0, 4, 2))
    if region.points is not None:
        samples = region.points[0].numpy() / stride - offset
        return Places(nothing, samples, nothing, "points", f"{len(samples)} points")
    if region.rotated is not None:
        return turned_places(region.rotated[0, 1:].numpy(), stride, size, settings)
    _, x1, y1, x2, y2 = region.rois[0].tolist()
    height, width = settings.output_size
    y = axis(y1, y2, 1 / stride, height, settings.sampling_ratio, settings.aligned)
    x = axis(x1, x2, 1 / stride, width, settings.sampling_ratio, settings.aligned)
    bins = product_bins(y, x)
    if view.deform is not None:
        return _moved(view[index : index + 1], y, x, bins, size, settings)
    if region.masks is not None:
        y0, y1s, left0, right0, left1, right1 = (region.masks.sides / stride - offset).unbind(1)
        pieces = [torch.stack([left0, y0], 1), torch.stack([right0, y0], 1)]
        pieces += [torch.stack([right1, y1s], 1), torch.stack([left1, y1s], 1)]
        shape = torch.stack(pieces, dim=1).numpy()
    else:
        shape = nothing
    if settings.mode == "exact":
        return Places(bins, np.empty((0, 2)), shape, "exact", f"the integral over {height} x {width} bins")
    down, across = ([at for p in range(a.bins) for at in a.samples(p, n)] for a, n in zip((y, x), size, strict=True))
    samples = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2)
    grid = f"{y.grid} x {x.grid}"
    return Places(bins, samples, shape, grid, f"{grid} samples in each of {height} x {width} bins")


def _moved(view: LayerView, y: Axis, x: Axis, bins: Points, size: tuple[int, int], settings: Settings) -> Places:
    """Return the places of a box whose bins a head moves."""
    assert view.deform is not None
    with torch.inference_mode():
        offsets, _ = find_moves(view.maps, view.layer, view.regions, view.levels, settings, view.deform)
    extent = np.array([x.bin * x.bins, y.bin * y.bins])
    moves = GAMMA * offsets[0].double().cpu().numpy().reshape(2, -1).T * extent  # [B, 2]
    places = [(p, q) for p in range(y.bins) for q in range(x.bins)]
    samples = np.empty((0, 2))
    if settings.mode != "exact":
        grids = [
            np.stack(np.meshgrid(x.samples(q, size[1]), y.samples(p, size[0])), -1).reshape(-1, 2) for p, q in places
        ]
        samples = np.concatenate([grid + move for grid, move in zip(grids, moves, strict=True)])
    grid = "exact" if settings.mode == "exact" else f"{y.grid} x {x.grid}"
    return Places(
        bins + moves[:, None], samples, np.empty((0, 4, 2)), grid, f"{y.bins} x {x.bins} bins moved by a head"
    )


def product_bins(y: Axis, x: Axis) -> Points:
    """Return the corners of upright bins [B, 4, 2]."""
    rows, columns = (np.array([one.edges(p) for p in range(one.bins)]) for one in (y, x))
    corners = [(columns[None, :, i], rows[:, None, j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
    return np.stack([np.stack(np.broadcast_arrays(u, v), -1).reshape(-1, 2) for u, v in corners], axis=1)


def turned_places(box: npt.NDArray[np.float64], stride: float, size: tuple[int, ...], settings: Settings) -> Places:
    """Return the places of a rotated box (centre x, centre y, width, height, angle) in pixels of the network input."""
    height, width = settings.output_size
    least = 0.0 if settings.aligned else 1.0
    centre = box[:2] / stride - (0.5 if settings.aligned else 0.0)
    sides = np.maximum(box[2:4] / stride, least)
    bin_w, bin_h = sides[0] / width, sides[1] / height
    grid_x = settings.sampling_ratio or max(1, math.ceil(bin_w))
    grid_y = settings.sampling_ratio or max(1, math.ceil(bin_h))

    def turned(columns: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]) -> Points:
        """Return the centres, on the map, of a grid on the box's own axes."""
        a = math.radians(box[4])
        xx, yy = np.meshgrid(columns, rows)
        u = yy * math.sin(a) + xx * math.cos(a) + centre[0]
        v = yy * math.cos(a) - xx * math.sin(a) + centre[1]
        return np.stack([u, v], -1).reshape(-1, 2)

    def middles(length: float, parts: int) -> npt.NDArray[np.float64]:
        return (np.arange(parts) + 0.5) * length / parts - length / 2

    middle = turned(middles(sides[0], width), middles(sides[1], height))
    table = np.array([[*at, bin_w, bin_h, box[4]] for at in middle])
    bins = rotated_corners(table)
    if settings.mode == "exact":
        return Places(
            bins, np.empty((0, 2)), np.empty((0, 4, 2)), "exact", f"the integral over {height} x {width} bins"
        )
    samples = np.empty((0, 2))
    if grid_x * width * grid_y * height <= MAX_SAMPLES:
        samples = turned(middles(sides[0], grid_x * width), middles(sides[1], grid_y * height))
        samples = samples[((samples >= -1) & (samples <= np.array(size[::-1]))).all(axis=1)]
    grid = f"{grid_y} x {grid_x}"
    return Places(bins, samples, np.empty((0, 4, 2)), grid, f"{grid} samples in each of {height} x {width} bins")
