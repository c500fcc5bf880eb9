"""Check the values of a box table: finite boxes and scores, corners in order, text that can be stored."""

from __future__ import annotations

import numpy as np

from roialign_cli.arrays import Floats
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.common import format_error
from roialign_cli.types import BoxTable

ROWS_PER_BLOCK = 1 << 20  # boxes that are checked at a time


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
                    _row_location(path, table, row), f"{what}: expected Unicode text, found {str(column[row])!r}"
                )


def check_values(path: str, table: BoxTable) -> None:
    """Raise InputError naming the first score that is not finite, or the first box that is not finite or is inverted."""
    if table.scores is not None and not np.isfinite(table.scores).all():
        row = int((~np.isfinite(table.scores)).argmax())
        raise InputError(
            "score-not-finite", f"{_row_location(path, table, row)}: expected a finite score, found {table.scores[row]}"
        )
    boxes = table.boxes
    for begin in range(0, len(boxes), ROWS_PER_BLOCK):
        block = boxes[begin : begin + ROWS_PER_BLOCK]
        wrong = ~np.isfinite(block).all(axis=1) | (block[:, 2] < block[:, 0]) | (block[:, 3] < block[:, 1])
        if wrong.any():
            raise _box_error(
                _row_location(path, table, begin + int(wrong.argmax())), block[wrong.argmax()], table.units
            )


def _box_error(where: str, box: Floats, units: str) -> InputError:
    x1, y1, x2, y2 = (float(f"{value:.7g}") for value in box)
    if not np.isfinite(box).all():
        return InputError("box-not-finite", f"{where}: expected four finite numbers, found [{x1}, {y1}, {x2}, {y2}]")
    axis, low, high = ("x", x1, x2) if x2 < x1 else ("y", y1, y2)
    if not units.startswith("xyxy"):
        side = "width" if axis == "x" else "height"
        return InputError("box-outside-format", f"{where}: {side} must not be negative, got {side}={high - low:.7g}")
    hint = ""
    if x2 >= 0 and y2 >= 0:
        hint = f"these look like x, y, width, height: --box-units {units.replace('xyxy', 'xywh')}"
    message = f"{where}: {axis}2 must be greater than {axis}1, got {axis}1={low}, {axis}2={high}"
    return InputError("box-outside-format", message, hint)


def _row_location(path: str, table: BoxTable, row: int) -> str:
    """Return the location of a row in the file, for an error message."""
    image = int(np.searchsorted(table.offset, row, side="right")) - 1
    return f'{path}: "{table.names[image]}", box {row - int(table.offset[image])}'
