"""Make the shapes of tables with a row per box: rotated boxes of a column of angles, points of two or three columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from roialign_cli.inputs.boxes.columns import ColumnMapping
from roialign_cli.inputs.boxes.units import Numbers, Units, enclose_rotated
from roialign_cli.shapes import NO_SHAPE, POINTS, ROTATED, Shapes


def table_shapes(mapping: ColumnMapping, region: str, boxes: Numbers, numbers: Mapping[str, Numbers]) -> Shapes | None:
    """Return the shapes of rows whose boxes [N, 4] are as the file has them, or None if the region is a box."""
    if region == "box":
        return None
    if region == "rotated" and "angle" in numbers:
        return Shapes.uniform(ROTATED, np.concatenate([_centred(mapping, boxes), numbers["angle"][:, None]], axis=1))
    if region == "points" and mapping.points:
        visible = np.full(len(boxes), 2.0)
        columns = [[numbers[role] for role in point] + [visible] * (3 - len(point)) for point in mapping.points]
        return Shapes.uniform(POINTS, np.stack([column for point in columns for column in point], axis=1))
    return Shapes.pack([NO_SHAPE] * len(boxes))


def enclosing_corners(mapping: ColumnMapping, boxes: Numbers, angle: Numbers) -> Numbers:
    """Return the corners of the upright boxes around rows of boxes [N, 4], as the file has them, that have an angle."""
    return enclose_rotated(_centred(mapping, boxes), angle)


def _centred(mapping: ColumnMapping, boxes: Numbers) -> Numbers:
    return Units("cxcywh").numbers(mapping.units_of(False).corners(boxes))
