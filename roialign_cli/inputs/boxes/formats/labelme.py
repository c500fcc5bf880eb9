"""Read LabelMe JSON, a file per image: rectangles, and the bounding boxes of circles and all other shapes.

Polygons, rectangles, rotated rectangles (X-AnyLabeling), circles (as 64 corners) and masks are regions, points and line strips
points.
"""

from __future__ import annotations

import base64
import binascii
import math
from pathlib import Path, PureWindowsPath

import msgspec
import numpy as np

from roialign_cli.inputs.boxes.common import Entry, Source, format_error, table_from_entries
from roialign_cli.inputs.boxes.json_objects import check_field_names, quoted_field_names
from roialign_cli.inputs.boxes.shape_parsing import (
    crop,
    ellipse,
    points,
    polygon,
    read_label_image,
    rectangle,
    shape_error,
)
from roialign_cli.shapes import NO_SHAPE, Shape
from roialign_cli.system.safe_read import require_regular_file
from roialign_cli.types import BoxTable


class Drawing(msgspec.Struct):
    """One annotated shape."""

    points: list[tuple[float, float]]
    label: str | int = ""
    shape_type: str | None = "polygon"
    mask: str | None = None  # PNG in base64, of the rectangle between its two points


class Content(msgspec.Struct):
    """The parts of a file that are read."""

    shapes: list[Drawing]
    imagePath: str | None = None  # noqa: N815 - LabelMe's name
    imageHeight: int | None = None  # noqa: N815
    imageWidth: int | None = None  # noqa: N815


FIELD_NAMES = quoted_field_names(Content)


def read(source: Source) -> BoxTable:
    """Read files sorted by path; the image is imagePath, or if that does not exist, the one with the stem of the file.

    Raises InputError.
    """
    entries = []
    for path in source.files(".json"):
        try:
            text = require_regular_file(path).read_bytes() if source.is_folder else source.read()
            content = msgspec.json.decode(text, type=Content)
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            hint = f"pass the file itself as BOXES: {path}" if source.is_folder else ""
            raise format_error(path, f"expected LabelMe JSON, found: {error}", hint) from None
        check_field_names(path, text, FIELD_NAMES)
        boxes = [_bounding_box(path, number, shape) for number, shape in enumerate(content.shapes)]
        name = source.images.find(PureWindowsPath(content.imagePath or path.stem).as_posix())
        if name not in source.images.all:
            name = source.images.find_by_stem(path.stem) or name
        labels = [str(shape.label) for shape in content.shapes]
        shapes = None
        if source.region != "box":
            size = (content.imageHeight or 0, content.imageWidth or 0)
            shapes = [_region(f"{path}: shape {number}", shape, size) for number, shape in enumerate(content.shapes)]
        entries.append(Entry(name, np.array(boxes, np.float64).reshape(-1, 4), labels, shapes=shapes))
    return table_from_entries(source, entries, source.units("xyxy"))


def _bounding_box(path: Path, number: int, shape: Drawing) -> list[float]:
    if shape.shape_type == "circle" and len(shape.points) == 2:  # the centre and a point on the circle
        (x, y), edge = shape.points
        radius = math.dist((x, y), edge)
        return [x - radius, y - radius, x + radius, y + radius]
    if not shape.points:
        raise format_error(path, f"shape {number}: expected points, found none")
    xs, ys = zip(*shape.points, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def _region(where: str, shape: Drawing, size: tuple[int, int]) -> Shape:
    """Return the region that a shape of LabelMe is, in an image of `size` (height, width). Raises InputError."""
    kind, count = shape.shape_type, len(shape.points)
    if kind in ("polygon", "rotation") or kind is None or (kind == "rectangle" and count == 4):  # 4: X-AnyLabeling
        return polygon(where, [[value for point in shape.points for value in point]])
    if kind == "rectangle" and count == 2:
        (x1, y1), (x2, y2) = shape.points
        return rectangle(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    if kind == "circle" and count == 2:
        (x, y), edge = shape.points
        radius = math.dist((x, y), edge)
        return ellipse(x, y, radius, radius)
    if kind in ("point", "linestrip"):
        return points(where, shape.points)
    return _mask(where, shape, size) if kind == "mask" and shape.mask is not None else NO_SHAPE


def _mask(where: str, shape: Drawing, size: tuple[int, int]) -> Shape:
    if min(size) < 1:
        raise shape_error(where, "expected imageHeight and imageWidth, over which the mask is, found none")
    try:
        content = base64.b64decode(shape.mask or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise shape_error(where, f"expected a PNG in base64, found: {error}") from None
    bitmap = read_label_image(where, content) != 0
    x, y = (round(min(point[axis] for point in shape.points)) for axis in (0, 1))
    return crop(where, bitmap, y, x, size)
