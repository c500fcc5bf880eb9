"""Read LabelMe JSON, a file per image: rectangles, and the bounding boxes of circles and all other shapes."""

from __future__ import annotations

import math
from pathlib import Path, PureWindowsPath

import msgspec
import numpy as np

from roialign_cli.inputs.boxes.common import Entry, Source, format_error, table_from_entries
from roialign_cli.inputs.boxes.json_objects import check_field_names, quoted_field_names
from roialign_cli.system.safe_read import require_regular_file
from roialign_cli.types import BoxTable


class Shape(msgspec.Struct):
    """One annotated shape."""

    points: list[tuple[float, float]]
    label: str | int = ""
    shape_type: str | None = "polygon"


class Content(msgspec.Struct):
    """The parts of a file that are read."""

    shapes: list[Shape]
    imagePath: str | None = None  # noqa: N815 - LabelMe's name


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
        entries.append(Entry(name, np.array(boxes, np.float64).reshape(-1, 4), labels))
    return table_from_entries(source, entries, source.units("xyxy"))


def _bounding_box(path: Path, number: int, shape: Shape) -> list[float]:
    if shape.shape_type == "circle" and len(shape.points) == 2:  # the centre and a point on the circle
        (x, y), edge = shape.points
        radius = math.dist((x, y), edge)
        return [x - radius, y - radius, x + radius, y + radius]
    if not shape.points:
        raise format_error(path, f"shape {number}: expected points, found none")
    xs, ys = zip(*shape.points, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]
