"""Make shapes from what formats state: rings of coordinates, run lengths in two forms, cut-out masks, ellipses.

Also the enclosing boxes of shapes, for annotations that have no box of their own. Errors of a shape name its place in the file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from roialign_cli.config import MAX_PIXELS
from roialign_cli.errors import InputError, quoted
from roialign_cli.inputs.boxes.units import enclose_rotated
from roialign_cli.shapes import (
    POINTS,
    POLYGONS,
    ROTATED,
    RUNS,
    Shape,
    bound_runs,
    decode_counts,
    encode_crop,
)

ELLIPSE_CORNERS = 64  # of the polygon that stands for an ellipse; its area is 0.16 % smaller
MAX_RUN = 2**32  # pixels of a mask, whose run lengths are stored in 32 bits
LABEL_MODES = ("1", "L", "P", "I", "I;16")  # of Pillow: one channel, or indices of a palette

Number = float | str  # NaN and Infinity are strings that start with NUL, see `json_objects`


class Runs(msgspec.Struct, gc=False):
    """COCO's run lengths of a mask, as numbers or as compressed text, over an image of `size` (height, width)."""

    size: tuple[int, int]
    counts: list[int] | str


def shape_error(where: str | Path, message: str, hint: str = "") -> InputError:
    """Return the error of a shape that is not valid."""
    return InputError("region-shape", f"{where}: {message}", hint)


def numbers(where: str, values: Sequence[Number]) -> list[float]:
    """Return finite numbers. Raises InputError for others."""
    found = []
    for value in values:
        if isinstance(value, str) or not math.isfinite(value):
            shown = value.removeprefix("\0") if isinstance(value, str) else value
            raise shape_error(where, f"expected finite numbers, found {quoted(shown)}")
        found.append(value)
    return found


def polygon(where: str, rings: Sequence[Sequence[Number]]) -> Shape:
    """Return the shape of rings x, y, x, y, ... Raises InputError for rings of an odd length or of less than 3 points."""
    parts = []
    for ring in rings:
        if len(ring) % 2:
            raise shape_error(where, f"expected a polygon with an x and a y per point, found {len(ring)} numbers")
        if len(ring) < 6:
            raise shape_error(where, f"expected a polygon of at least 3 points, found {len(ring) // 2}")
        parts.append(np.array(numbers(where, ring)).reshape(-1, 2))
    if not parts:
        raise shape_error(where, "expected polygons, found an empty list")
    return Shape(POLYGONS, parts)


def runs(where: str, size: tuple[int, int], counts: Sequence[int] | str | npt.NDArray[np.integer]) -> Shape:
    """Return the shape of COCO's run lengths. Raises InputError if they are not those of a mask with a pixel in it."""
    height, width = size
    if min(size) < 1 or height * width >= MAX_RUN:
        raise shape_error(where, f"expected run lengths over the size of an image, found size {list(size)}")
    try:
        lengths = decode_counts(counts.encode()) if isinstance(counts, str) else np.asarray(counts, np.int64)
    except ValueError as error:
        raise shape_error(where, f"expected COCO's run lengths, found: {error}") from None
    except OverflowError:
        raise shape_error(where, "expected COCO's run lengths, found a number of more than 64 bits") from None
    low, high = int(lengths.min(initial=0)), int(lengths.max(initial=0))
    if low < 0 or high > height * width:
        found = low if low < 0 else high
        raise shape_error(where, f"expected run lengths from 0 to {height * width}, found {found}")
    if (total := int(lengths.sum())) != height * width:
        raise shape_error(
            where, f"expected run lengths that add up to {height} x {width} = {height * width}, found {total}"
        )
    if not lengths[1::2].any():
        raise shape_error(where, "expected a mask with a pixel in it, found an empty one")
    return Shape(RUNS, (), lengths, size)


def crop(where: str, bitmap: npt.NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> Shape:
    """Return the mask that a bitmap [h, w] is part of: its first pixel is (top, left) of an image of `size`.

    Raises InputError if it reaches out of the image, or has no pixel.
    """
    height, width = bitmap.shape
    if min(top, left) < 0 or top + height > size[0] or left + width > size[1]:
        found = f"{width} x {height} pixels at ({left}, {top}) of {size[1]} x {size[0]}"
        raise shape_error(where, f"expected a mask inside of its image, found {found}")
    if size[0] * size[1] >= MAX_RUN:
        raise shape_error(where, f"expected an image of less than 2^32 pixels, found {size[1]} x {size[0]}")
    if not bitmap.any():
        raise shape_error(where, "expected a mask with a pixel in it, found an empty one")
    return Shape(RUNS, (), encode_crop(bitmap, top, left, size), size)


def row_major_bitmap(where: str, counts: Sequence[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the bitmap of run lengths that go along rows, as CVAT writes them. Raises InputError if they do not fit."""
    total = sum(counts)
    if min(counts, default=0) < 0 or total != height * width or total > MAX_PIXELS:
        expected = f"expected run lengths that add up to {width} x {height} = {width * height}"
        raise shape_error(where, f"{expected}, found {len(counts)} that add up to {total}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, np.array(counts, np.int64)).reshape(height, width)


def read_label_image(where: str | Path, content: bytes) -> npt.NDArray[np.integer]:
    """Return the values [H, W] of an image of one channel, or the indices of one with a palette. Raises InputError."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode not in LABEL_MODES:
                raise shape_error(where, f"expected a PNG of one channel or with a palette, found mode {image.mode}")
            if image.width * image.height > MAX_PIXELS:
                raise shape_error(where, f"expected at most {MAX_PIXELS} pixels, found {image.width} x {image.height}")
            return np.asarray(image, np.uint8) if image.mode == "1" else np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise shape_error(where, f"expected a PNG, found: {error}") from None


def rectangle(x1: float, y1: float, x2: float, y2: float) -> Shape:
    """Return an upright rectangle as a polygon, from its top left corner to the right."""
    return Shape(POLYGONS, [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])])


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0, aspect: float = 1.0) -> Shape:
    """Return an ellipse as a polygon of 64 corners: turned clockwise, where x counts `aspect` times as much as y."""
    angles = np.arange(ELLIPSE_CORNERS) * (2 * np.pi / ELLIPSE_CORNERS)
    along, down = aspect * rx * np.cos(angles), ry * np.sin(angles)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return Shape(POLYGONS, [np.stack([x + (along * cos - down * sin) / aspect, y + along * sin + down * cos], axis=1)])


def rotated(where: str, values: Sequence[Number]) -> Shape:
    """Return the shape of a centre x, centre y, width, height and angle in degrees, counter-clockwise. Raises InputError."""
    found = numbers(where, values)
    if len(found) != 5:
        raise shape_error(where, f"expected cx, cy, width, height, angle, found {len(found)} numbers")
    if min(found[2:4]) < 0:
        raise shape_error(where, f"width and height must not be negative, found {found[2]:g} and {found[3]:g}")
    return Shape(ROTATED, [np.array([found])])


def points(where: str, rows: Sequence[Sequence[Number]]) -> Shape:
    """Return the shape of points x, y or x, y, visibility, which is 2 (visible) where it is not stated. Raises InputError."""
    found = [numbers(where, row) for row in rows]
    wrong = next((row for row in found if len(row) not in (2, 3)), None)
    if wrong is not None or not found:
        what = f"{len(wrong)} numbers" if wrong is not None else "none"
        raise shape_error(where, f"expected points [x, y] or [x, y, visibility], found {what}")
    return Shape(POINTS, [np.array([[*row, 2.0][:3] for row in found])])


def enclosing_box(shape: Shape) -> list[float]:
    """Return the box x1, y1, x2, y2 around a shape; of points, around the visible ones if there are any."""
    if shape.kind == RUNS:
        return list(map(float, bound_runs(np.asarray(shape.counts), shape.size[0])))
    found = np.concatenate([np.asarray(part, np.float64) for part in shape.parts])
    if shape.kind == ROTATED:
        box: list[float] = enclose_rotated(found[:, :4], found[:, 4])[0].tolist()
        return box
    if shape.kind == POINTS and (found[:, 2] > 0).any():
        found = found[found[:, 2] > 0]
    return [*found[:, :2].min(axis=0).tolist(), *found[:, :2].max(axis=0).tolist()]
