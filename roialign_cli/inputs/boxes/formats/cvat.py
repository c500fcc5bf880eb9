"""Read CVAT for images, one XML file with an <image> for each image and its shapes in pixels.

Boxes with a rotation (degrees, clockwise about the centre), polygons, polylines, points and ellipses have the boxes around
them, and masks theirs (docs.cvat.ai, "CVAT for images"). Run lengths of masks go along rows, within the mask's rectangle.
"""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element

import numpy as np

from roialign_cli.inputs.boxes.common import Entry, Source, format_error, parse_number, table_from_entries
from roialign_cli.inputs.boxes.formats.voc import parse
from roialign_cli.inputs.boxes.shape_parsing import (
    crop,
    ellipse,
    points,
    polygon,
    rotated,
    row_major_bitmap,
    shape_error,
)
from roialign_cli.inputs.boxes.units import Units, enclose_rotated
from roialign_cli.shapes import NO_SHAPE, Shape
from roialign_cli.types import BoxTable

POINT_SHAPES = ("polygon", "polyline", "points")
SHAPES = ("box", *POINT_SHAPES, "ellipse", "mask")


def read(source: Source) -> BoxTable:
    """Read the images in the order of the file, also those without shapes. Raises InputError."""
    entries = []
    for path in source.files(".xml"):
        root = parse(path, path.read_bytes() if source.is_folder else source.read())
        if root.tag != "annotations":
            raise format_error(path, f"expected <annotations> of CVAT for images, found <{root.tag}>")
        if root.find("track") is not None:
            hint = "export the task again as CVAT for images"
            raise format_error(path, "expected an <image> for each image, found the tracks of a video", hint)
        for image in root.iter("image"):
            name = image.get("name", "")
            where = f'{path}: "{name}"'
            shapes = [shape for shape in image if shape.tag in SHAPES]
            boxes = [_bounding_box(f"{where}, shape {number}", shape) for number, shape in enumerate(shapes)]
            size = (int(_number(where, image, "height")), int(_number(where, image, "width")))
            labels = [shape.get("label", "") for shape in shapes]
            regions = None
            if source.region != "box":
                regions = [
                    _region(f"{where}, shape {number}", shape, size, source.region)
                    for number, shape in enumerate(shapes)
                ]
            found = np.array(boxes, np.float64).reshape(-1, 4)
            entries.append(Entry(source.images.find(name), found, labels, size=size, shapes=regions))
    return table_from_entries(source, entries, Units("xyxy"))


def _bounding_box(where: str, shape: Element) -> list[float]:
    if shape.tag in POINT_SHAPES:
        xs, ys = zip(*_points(where, shape), strict=True)
        return [min(xs), min(ys), max(xs), max(ys)]
    if shape.tag == "mask":
        left, top, width, height = (_number(where, shape, name) for name in ("left", "top", "width", "height"))
        return [left, top, left + width, top + height]
    angle = math.radians(parse_number(where, "rotation", shape.get("rotation") or "0"))
    if shape.tag == "ellipse":
        x, y, rx, ry = (_number(where, shape, name) for name in ("cx", "cy", "rx", "ry"))
        half_w, half_h = (
            math.hypot(rx * math.cos(angle), ry * math.sin(angle)), math.hypot(rx * math.sin(angle), ry * math.cos(angle)),
        )  # fmt: skip
        return [x - half_w, y - half_h, x + half_w, y + half_h]
    x1, y1, x2, y2 = (_number(where, shape, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    if not angle:
        return [x1, y1, x2, y2]
    centred = np.array([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]])
    corners: list[float] = enclose_rotated(centred, np.array([math.degrees(angle)]))[0].tolist()
    return corners


def _points(where: str, shape: Element) -> list[tuple[float, float]]:
    text = shape.get("points", "")
    try:
        return [(float(x), float(y)) for x, y in (point.split(",") for point in text.split(";"))]
    except ValueError:
        raise format_error(where, f"expected points x,y;x,y;..., found {text[:80]!r}") from None


def _region(where: str, shape: Element, size: tuple[int, int], region: str) -> Shape:
    """Return the region that a shape is, in an image of `size` (height, width). Raises InputError.

    A box without a rotation is a rotated box, and no mask.
    """
    if shape.tag == "polygon":
        return polygon(where, [[value for point in _points(where, shape) for value in point]])
    if shape.tag == "points":
        return points(where, _points(where, shape))
    if shape.tag == "mask":
        return _mask(where, shape, size)
    angle = parse_number(where, "rotation", shape.get("rotation") or "0")
    if shape.tag == "ellipse":
        x, y, rx, ry = (_number(where, shape, name) for name in ("cx", "cy", "rx", "ry"))
        return ellipse(x, y, rx, ry, angle)
    if shape.tag == "box" and (angle or region == "rotated"):
        x1, y1, x2, y2 = (_number(where, shape, name) for name in ("xtl", "ytl", "xbr", "ybr"))
        return rotated(where, [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, -angle])
    return NO_SHAPE


def _mask(where: str, shape: Element, size: tuple[int, int]) -> Shape:
    left, top, width, height = (round(_number(where, shape, name)) for name in ("left", "top", "width", "height"))
    text = shape.get("rle", "")
    try:
        counts = [int(count) for count in text.split(",")]
    except ValueError:
        raise shape_error(where, f"expected run lengths separated by commas, found {text[:80]!r}") from None
    return crop(where, row_major_bitmap(where, counts, height, width), top, left, size)


def _number(where: str, element: Element, name: str) -> float:
    return parse_number(where, name, element.get(name, ""))
