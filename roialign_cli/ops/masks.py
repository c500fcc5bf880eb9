"""Turn masks of RoIs into disjoint trapezoids with horizontal bases, the form in which `roi_align_masked` pools them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.ops.checks import input_error
from roialign_cli.shapes import POLYGONS, RUNS, Shape, Shapes, decode_counts, encode_bitmap

MAX_PIXELS = 2**32  # of a mask, whose run lengths are stored in 32 bits

Mask = Mapping[str, Any] | Sequence[Any] | npt.NDArray[np.bool_] | Tensor


@dataclass(frozen=True)
class Trapezoids:
    """The masks of K RoIs in disjoint pieces: those of RoI k are sides[first[k]:first[k + 1]].

    sides [T, 6] float64: y0, y1, left and right at y0, left and right at y1, in image pixels.
    """

    first: Tensor  # [K + 1] int64
    sides: Tensor

    @classmethod
    def of_shapes(cls, shapes: Shapes) -> Trapezoids:
        """Return the pieces of polygons, of which the parts of a row are united, and of run lengths."""
        from roialign_cli.ops.cpu.mask_pieces import rectangles_of_runs, trapezoids_of_polygons

        found = [np.empty((0, 6))]
        for row in range(len(shapes)):
            if shapes.kind[row] == RUNS:
                counts = shapes.counts[shapes.run[row] : shapes.run[row + 1]]
                found.append(rectangles_of_runs(counts, int(shapes.sizes[row, 0])))
            else:
                parts = shapes.part[shapes.first[row] : shapes.first[row + 1] + 1]
                polygons = shapes.coordinates[parts[0] : parts[-1]].astype(np.float64)
                found.append(trapezoids_of_polygons(polygons, parts - parts[0]))
        first = np.cumsum([len(pieces) for pieces in found])
        return cls(torch.from_numpy(first), torch.from_numpy(np.concatenate(found)))

    def scaled(self, x: float, y: float) -> Trapezoids:
        """Return masks of an image that is resized by factors."""
        return Trapezoids(self.first, self.sides * torch.tensor([y, y, x, x, x, x], dtype=torch.float64))

    def moved(self, x: Tensor, y: Tensor) -> Trapezoids:
        """Return masks of which each is moved by its x [K] and y [K]."""
        counts = self.first.diff()
        by_row = torch.stack([y, y, x, x, x, x], dim=1).repeat_interleave(counts, dim=0)
        return Trapezoids(self.first, self.sides + by_row)

    def areas(self) -> Tensor:
        """Return the area of each mask [K] in square pixels, float64."""
        y0, y1, left0, right0, left1, right1 = self.sides.unbind(1)
        piece = (y1 - y0) * ((right0 - left0) + (right1 - left1)) / 2
        owner = torch.repeat_interleave(torch.arange(len(self.first) - 1), self.first.diff())
        return torch.zeros(len(self.first) - 1, dtype=torch.float64).index_add_(0, owner, piece)

    def __getitem__(self, rows: Any) -> Trapezoids:
        """Return the masks of some of the RoIs: of a slice, a mask [K] or indices."""
        count = len(self.first) - 1
        index = np.arange(count)[rows.numpy() if isinstance(rows, Tensor) else rows]
        first = self.first.numpy()
        counts = np.diff(first)[index]
        ends = np.concatenate([[0], np.cumsum(counts)])
        pieces = np.arange(ends[-1]) + np.repeat(first[index] - ends[:-1], counts)
        return Trapezoids(torch.from_numpy(ends), self.sides[torch.from_numpy(pieces)])


def parse_masks(masks: Sequence[Mask], rows: int) -> Trapezoids:
    """Return the masks of a call of `roi_align_masked`, one per RoI. Raises OperatorInputError naming the mask."""
    if isinstance(masks, Tensor | np.ndarray):
        masks = list(masks)
    if not isinstance(masks, Sequence) or len(masks) != rows:
        found = len(masks) if isinstance(masks, Sequence) else type(masks).__name__
        raise input_error("masks", f"expected one mask for each of {rows} RoIs, found {found}")
    return Trapezoids.of_shapes(Shapes.pack([_parse(f"masks[{i}]", mask) for i, mask in enumerate(masks)]))


def _parse(where: str, mask: Mask) -> Shape:
    if isinstance(mask, Mapping):
        return _parse_runs(where, mask)
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().numpy()
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.ndim == 2:
        return Shape(RUNS, (), encode_bitmap(mask), mask.shape)
    if not isinstance(mask, Sequence) or not mask:
        found = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else repr(mask)
        raise input_error(where, f"expected run lengths, polygons or a bool array [H, W], found {found}")
    return Shape(POLYGONS, [_parse_polygon(f"{where}: polygon {i}", part) for i, part in enumerate(mask)])


def _parse_runs(where: str, mask: Mapping[str, Any]) -> Shape:
    """Return run lengths as COCO has them: {"size": [height, width], "counts": numbers, or text if compressed}."""
    try:
        height, width = (operator.index(side) for side in mask["size"])
        counts = mask["counts"]
        if isinstance(counts, str | bytes):
            counts = decode_counts(counts.encode() if isinstance(counts, str) else counts)
        runs = np.asarray(counts, None if len(counts) else np.int64).astype(np.int64, casting="same_kind")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise input_error(where, f"expected size (height, width) and counts, found: {error}") from None
    if min(height, width) < 1 or height * width >= MAX_PIXELS:
        raise input_error(where, f"expected the size of an image of less than 2^32 pixels, found {height} x {width}")
    if runs.ndim != 1 or runs.min(initial=0) < 0 or runs.sum() != height * width:
        found = "a negative one" if runs.min(initial=0) < 0 else f"a sum of {runs.sum()}"
        raise input_error(where, f"expected run lengths that add up to {height} x {width}, found {found}")
    return Shape(RUNS, (), runs, (height, width))


def _parse_polygon(where: str, part: Any) -> npt.NDArray[np.float32]:
    """Return the corners of a polygon [n, 2]: [x1, y1, x2, y2, ...] or [[x1, y1], ...]."""
    try:
        corners = np.asarray(part, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise input_error(where, "expected x and y in turn") from None
    if len(corners) < 3:
        raise input_error(where, f"expected at least 3 corners, found {len(corners)}")
    with np.errstate(over="ignore"):
        exact = corners.astype(np.float32)
    if not np.isfinite(exact).all():
        raise input_error(where, "expected finite numbers")
    return exact
