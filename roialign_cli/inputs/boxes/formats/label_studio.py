"""Read Label Studio's JSON exports: rectangles, ellipses, polygons and key points in percent of the image.

A rectangle is rotated clockwise about its upper left corner (labelstud.io, "RectangleLabels"). Boxes are those around the
shapes. Annotations that were cancelled are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import msgspec
import numpy as np

from roialign_cli.inputs.boxes.common import Entry, Source, format_error, table_from_entries
from roialign_cli.inputs.boxes.shape_parsing import ellipse, points, polygon, shape_error
from roialign_cli.inputs.boxes.units import Units
from roialign_cli.shapes import NO_SHAPE, Shape
from roialign_cli.types import BoxTable

UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # that Label Studio adds to the names of uploaded files
LABEL_KEYS = ("rectanglelabels", "polygonlabels", "ellipselabels", "keypointlabels", "brushlabels", "labels")
IMAGE_KEYS = ("image", "img", "ocr", "captioning")  # usual names of the image in `data`


def read(source: Source) -> BoxTable:
    """Read the tasks in the order of the file. Raises InputError."""
    try:
        tasks = msgspec.json.decode(source.read(), type=list[dict[str, Any]])
    except msgspec.DecodeError as error:
        raise format_error(source.path, f"expected a list of Label Studio's tasks, found: {error}") from None
    entries = []
    for number, task in enumerate(tasks):
        where = f"{source.path}: task {number}"
        boxes, labels, shapes = [], [], []
        try:
            for result in _results(task):
                value, size = result.get("value", result), (result.get("original_width"), result.get("original_height"))
                box = _bounding_box(value, size)
                if box is not None:
                    boxes.append([side / 100 for side in box])
                    labels.append(next((str(value[key][0]) for key in LABEL_KEYS if value.get(key)), ""))
                if source.region != "box":
                    shapes += _region(where, value, size, source.region)
            name = _image_name(task)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise format_error(where, f"expected shapes in percent of the image, found: {error!r}") from None
        if not name:
            raise format_error(where, "expected the address of an image in data, found none")
        found = np.array(boxes, np.float64).reshape(-1, 4)
        entries.append(Entry(_find(source, name), found, labels, shapes=shapes))
    return table_from_entries(source, entries, Units("xyxy", relative=True))


def _results(task: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the shapes of a task, in the full export or in JSON-MIN, where they are lists among the task's own keys."""
    if "data" not in task:
        for value in task.values():
            if isinstance(value, list):
                yield from (shape for shape in value if (isinstance(shape, dict) and "x" in shape) or "points" in shape)
        return
    for annotation in task.get("annotations") or task.get("completions") or task.get("predictions") or []:
        if not annotation.get("was_cancelled"):
            yield from annotation.get("result", [])


def _bounding_box(value: Mapping[str, Any], size: tuple[Any, Any]) -> list[float] | None:
    """Return x1, y1, x2, y2 in percent, or None for a result that is no shape, such as a choice."""
    if "points" in value:
        xs, ys = zip(*value["points"], strict=True)
        return [min(xs), min(ys), max(xs), max(ys)]
    if "radiusX" in value:
        x, y, rx, ry = (float(value[key]) for key in ("x", "y", "radiusX", "radiusY"))
        return [x - rx, y - ry, x + rx, y + ry]
    if "width" not in value or "x" not in value:
        return None
    if "height" not in value:  # a key point, whose width is that of its mark
        return [float(value[key]) for key in ("x", "y", "x", "y")]
    x, y, width, height = (float(value[key]) for key in ("x", "y", "width", "height"))
    if not value.get("rotation"):
        return [x, y, x + width, y + height]
    lefts, tops = zip(*_corners(value, size), strict=True)
    return [min(lefts), min(tops), max(lefts), max(tops)]


def _corners(value: Mapping[str, Any], size: tuple[Any, Any]) -> list[tuple[float, float]]:
    """Return the corners of a rectangle in percent, from its upper left one to the right."""
    x, y, width, height = (float(value[key]) for key in ("x", "y", "width", "height"))
    angle = math.radians(float(value.get("rotation") or 0))
    aspect = (
        float(size[0]) / float(size[1]) if angle else 1.0
    )  # a percent of the width has another length than of the height
    corners = [(0.0, 0.0), (width * aspect, 0.0), (width * aspect, height), (0.0, height)]
    return [
        (x + (dx * math.cos(angle) - dy * math.sin(angle)) / aspect, y + dx * math.sin(angle) + dy * math.cos(angle))
        for dx, dy in corners
    ]


def _region(where: str, value: Mapping[str, Any], size: tuple[Any, Any], region: str) -> list[Shape]:
    """Return the shape of a result, relative to the image, or none for what is no shape. Raises InputError."""
    if value.get("format") == "rle":
        hint = "export brush labels as PNG or COCO"
        raise shape_error(where, "expected polygons, rectangles or ellipses, found a brush label", hint)
    if "points" in value:
        return [polygon(where, [[side / 100 for point in value["points"] for side in point]])]
    if "radiusX" in value:
        x, y, rx, ry = (float(value[key]) / 100 for key in ("x", "y", "radiusX", "radiusY"))
        degrees = float(value.get("rotation") or 0)
        return [ellipse(x, y, rx, ry, degrees, float(size[0]) / float(size[1]) if degrees else 1.0)]
    if "width" not in value or "x" not in value:
        return []
    if "height" not in value:
        return [points(where, [[float(value["x"]) / 100, float(value["y"]) / 100]])]
    if value.get("rotation") or region == "rotated":
        return [polygon(where, [[side / 100 for corner in _corners(value, size) for side in corner]])]
    return [NO_SHAPE]


def _image_name(task: Mapping[str, Any]) -> str:
    """Return the path in the address of a task's image: an upload, a file of local storage (?d=path), or any other URL."""
    data = task.get("data", task)
    texts = [data[key] for key in IMAGE_KEYS if isinstance(data.get(key), str)]
    texts += [value for value in data.values() if isinstance(value, str) and PurePosixPath(urlparse(value).path).suffix]
    if not texts:
        return ""
    address = urlparse(texts[0])
    local = parse_qs(address.query).get("d")
    return local[0] if local else unquote(address.path).lstrip("/")


def _find(source: Source, name: str) -> str:
    """Return the image of an address, also without the prefix of uploads."""
    file_name = PurePosixPath(name).name
    found = source.images.find(name)
    if found in source.images.all:
        return found
    plain = UPLOAD_PREFIX.sub("", file_name, count=1)
    found = source.images.find(plain)
    return found if found in source.images.all else plain
