"""Regions to pool in pixels of the network input: boxes, rotated boxes, masks or points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roialign_cli.ops.masks import Trapezoids
from roialign_cli.types import BoxTable


@dataclass(frozen=True)
class Regions:
    """K regions of a batch. All have a box, those of another kind than boxes also what lies in it.

    rois [K, 5]: index of the image in the batch, x1, y1, x2, y2. rotated [K, 6]: that index, centre x, centre y, width, height,
    angle in degrees, counter-clockwise. points [K, P, 2]: x, y. All float64.
    """

    rois: Tensor
    rotated: Tensor | None = None
    masks: Trapezoids | None = None
    points: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rois)

    def __getitem__(self, rows: Any) -> Regions:
        """Return some of the regions: of a slice, a mask [K] or indices."""
        parts = (self.rois, self.rotated, self.masks, self.points)
        return Regions(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]

    def sides(self) -> Tensor:
        """Return the width and height of each box or rotated box, [K, 2]."""
        return self.rois[:, 3:] - self.rois[:, 1:3] if self.rotated is None else self.rotated[:, 3:5]

    def areas(self) -> Tensor:
        """Return the area of each region [K] in square pixels: of the mask or the rotated box, otherwise of the box."""
        return self.sides().prod(1) if self.masks is None else self.masks.areas()

    def extents(self) -> Tensor:
        """Return the boxes [K, 5] that contain everything that is pooled, as `rois` are laid out."""
        if self.points is not None:
            low, high = self.points.amin(dim=1), self.points.amax(dim=1)
            return torch.cat([self.rois[:, :1], low, high], dim=1)
        if self.rotated is None:
            return self.rois
        index, centre = self.rotated[:, :1], self.rotated[:, 1:3]
        width, height, angle = self.rotated[:, 3], self.rotated[:, 4], torch.deg2rad(self.rotated[:, 5])
        cos, sin = angle.cos().abs(), angle.sin().abs()
        half = torch.stack([width * cos + height * sin, width * sin + height * cos], dim=1) / 2
        return torch.cat([index, centre - half, centre + half], dim=1)

    def scaled_about_centre(self, scale: float) -> Regions:
        """Return boxes or rotated boxes whose width and height are multiplied by a scale, about the same centres."""
        if scale == 1:
            return self
        centre = (self.rois[:, 1:3] + self.rois[:, 3:5]) / 2
        half = (self.rois[:, 3:5] - self.rois[:, 1:3]) / 2 * scale
        rois = torch.cat([self.rois[:, :1], centre - half, centre + half], dim=1)
        sides = torch.tensor([1, 1, 1, scale, scale, 1], dtype=torch.float64)
        return Regions(rois, None if self.rotated is None else self.rotated * sides)

    def moved(self, by: Tensor) -> Regions:
        """Return regions of which each is moved by its x and y [K, 2]."""
        rois = self.rois.clone()
        rois[:, 1:] += by.repeat(1, 2)
        rotated = None if self.rotated is None else self.rotated.clone()
        if rotated is not None:
            rotated[:, 1:3] += by
        masks = None if self.masks is None else self.masks.moved(by[:, 0], by[:, 1])
        return Regions(rois, rotated, masks, None if self.points is None else self.points + by[:, None])


def batch_regions(table: BoxTable, images: Sequence[int], size: tuple[int, int], resized: tuple[int, int]) -> Regions:
    """Return the regions of a batch of images.

    Args:
        table: boxes, and rotated boxes, masks or points, in pixels of the original images.
        images: indices of the images of the batch.
        size: (height, width) that all images of the batch have.
        resized: (height, width) of the network input before padding.
    """
    y, x = (new / old for new, old in zip(resized, size, strict=True))
    rows = np.concatenate([np.arange(table.rows_of(i).start, table.rows_of(i).stop) for i in images])
    counts = [table.rows_of(i).stop - table.rows_of(i).start for i in images]
    index = np.repeat(np.arange(len(images)), counts)[:, None]
    scaled = table.boxes[rows].astype(np.float64) * np.array([x, y, x, y])
    rois = torch.from_numpy(np.concatenate([index, scaled], axis=1))
    if table.rotated is not None:
        turned = torch.from_numpy(np.concatenate([index, table.rotated[rows].astype(np.float64)], axis=1))
        return Regions(rois, _resize_rotated(turned, x, y))
    if table.points is not None:
        points = torch.from_numpy(table.points[rows, :, :2].astype(np.float64))
        return Regions(rois, points=points * torch.tensor([x, y], dtype=torch.float64))
    if table.shapes is not None:
        return Regions(rois, masks=Trapezoids.of_shapes(table.shapes.take(rows)).scaled(x, y))
    return Regions(rois)


def _resize_rotated(rotated: Tensor, x: float, y: float) -> Tensor:
    """Return rotated boxes [K, 6] of an image that is resized by factors.

    The factors differ by less than a pixel in a side of the image, from rounding; where they do, a rectangle becomes a
    parallelogram, and the rectangle with the same direction and lengths of its sides stands for it.
    """
    angle = torch.deg2rad(rotated[:, 5])
    cos, sin = angle.cos(), angle.sin()
    along, across = torch.hypot(cos * x, sin * y), torch.hypot(sin * x, cos * y)
    turned = rotated[:, 5] if x == y else torch.rad2deg(torch.atan2(sin * y, cos * x))
    return torch.stack(
        [rotated[:, 0], rotated[:, 1] * x, rotated[:, 2] * y, rotated[:, 3] * along, rotated[:, 4] * across, turned],
        dim=1,
    )
