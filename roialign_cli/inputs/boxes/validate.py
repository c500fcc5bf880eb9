"""Check the values of a box table: finite boxes, scores and shapes, corners in order, text that can be stored."""

from __future__ import annotations

import numpy as np

from roialign_cli.arrays import Floats
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.common import format_error
from roialign_cli.inputs.boxes.shape_parsing import shape_error
from roialign_cli.shapes import POINTS, POLYGONS, ROTATED
from roialign_cli.types import BoxTable

ROWS_PER_BLOCK = 1 << 20  # boxes that are checked at a time
FLOAT_MAX = float(np.finfo(np.float32).max)
MAX_SIDE = 2**31  # pixels of an image


def check_text(path: str, table: BoxTable) -> None:
    """Raise InputError naming the first label or id with half of a surrogate pair, which UTF-8 cannot encode."""
    for what, column in (("labels", table.labels), ("ids", table.ids)):
        if column is None or column.dtype.kind != "U":
            continue
        characters = column.view(np.uint32).reshape(len(column), -1)
        for begin in range(0, len(column), ROWS_PER_BLOCK):
            block = characters[begin : begin + ROWS_PER_BLOCK]
            wrong = ((block >= 0xD800) & (block < 0xE000)).any(axis=1)
            if wrong.any():
                row = begin + int(wrong.argmax())
                raise format_error(
                    row_location(path, table, row), f"{what}: expected Unicode text, found {str(column[row])!r}"
                )


def check_values(path: str, table: BoxTable) -> None:
    """Raise InputError naming the first score that is not finite, or the first box that is not finite or is inverted.

    Relative boxes must be finite in pixels of the largest images, too.
    """
    if table.scores is not None and not np.isfinite(table.scores).all():
        row = int((~np.isfinite(table.scores)).argmax())
        raise InputError(
            "score-not-finite", f"{row_location(path, table, row)}: expected a finite score, found {table.scores[row]}"
        )
    boxes, limit = table.boxes, FLOAT_MAX if table.relative_boxes is None else FLOAT_MAX / MAX_SIDE
    for begin in range(0, len(boxes), ROWS_PER_BLOCK):
        block = boxes[begin : begin + ROWS_PER_BLOCK]
        wrong = ~(np.abs(block) <= limit).all(axis=1) | (block[:, 2] < block[:, 0]) | (block[:, 3] < block[:, 1])
        if wrong.any():
            where = row_location(path, table, begin + int(wrong.argmax()))
            raise _box_error(where, block[wrong.argmax()], table.units, limit)


def _box_error(where: str, box: Floats, units: str, limit: float) -> InputError:
    x1, y1, x2, y2 = (float(f"{value:.7g}") for value in box)
    if not np.isfinite(box).all():
        return InputError("box-not-finite", f"{where}: expected four finite numbers, found [{x1}, {y1}, {x2}, {y2}]")
    if not (np.abs(box) <= limit).all():
        expected = f"expected numbers of at most {limit:.2g}, as shares of the image"
        return InputError("box-not-finite", f"{where}: {expected}, found [{x1}, {y1}, {x2}, {y2}]")
    axis, low, high = ("x", x1, x2) if x2 < x1 else ("y", y1, y2)
    if not units.startswith("xyxy"):
        side = "width" if axis == "x" else "height"
        return InputError("box-outside-format", f"{where}: {side} must not be negative, got {side}={high - low:.7g}")
    hint = ""
    if x2 >= 0 and y2 >= 0:
        hint = f"these look like x, y, width, height: --box-units {units.replace('xyxy', 'xywh')}"
    message = f"{where}: {axis}2 must be greater than {axis}1, got {axis}1={low}, {axis}2={high}"
    return InputError("box-outside-format", message, hint)


def check_shapes(path: str, table: BoxTable) -> None:
    """Raise InputError naming the first shape that has a wrong number of coordinates, or one that is not finite.

    Readers check what they make one by one; this holds for shapes that are read in bulk, too.
    """
    shapes = table.shapes
    if shapes is None:
        return
    lengths, kind = np.diff(shapes.part), np.repeat(shapes.kind, np.diff(shapes.first))
    for wrong, expected in (
        ((kind == POLYGONS) & (lengths % 2 == 1), "a polygon with an x and a y per point"),
        ((kind == POLYGONS) & (lengths < 6), "a polygon of at least 3 points"),
        ((kind == POINTS) & ((lengths % 3 > 0) | (lengths == 0)), "points of x, y, visibility"),
    ):
        if wrong.any():
            part = int(wrong.argmax())
            where = row_location(path, table, shapes.row_of_part(part))
            raise shape_error(where, f"expected {expected}, found {lengths[part]} numbers")
    finite = np.isfinite(shapes.coordinates)
    if not finite.all():
        index = int(finite.argmin())
        where = row_location(path, table, shapes.row_of_part(shapes.part_of_coordinate(index)))
        raise shape_error(where, f"expected finite numbers, found {shapes.coordinates[index]}")
    sides = shapes.coordinates[shapes.part[:-1][kind == ROTATED][:, None] + np.array([2, 3])]
    if (sides < 0).any():
        row = int(np.flatnonzero(shapes.kind == ROTATED)[(sides < 0).any(axis=1).argmax()])
        found = shapes[row].parts[0]
        shown = ", ".join(f"{value:g}" for value in np.asarray(found).reshape(-1)[2:4])
        raise shape_error(row_location(path, table, row), f"width and height must not be negative, found {shown}")


def row_location(path: str, table: BoxTable, row: int) -> str:
    """Return the location of a row in the file, for an error message: by its place in its image, and by its id."""
    image = int(np.searchsorted(table.offset, row, side="right")) - 1
    identity = "" if table.ids is None else f" (id {table.ids[row]})"
    return f'{path}: "{table.names[image]}", box {row - int(table.offset[image])}{identity}'
