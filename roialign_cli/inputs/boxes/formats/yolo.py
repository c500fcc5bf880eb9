"""Read YOLO, a text file per image with a line per box: class, centre x, centre y, width, height, relative to the image.

A sixth number is a score; a polygon of three corners or more (segmentation, oriented boxes) has the box around it. Class names
come from --classes, or from classes.txt, obj.names, *.names, data.yaml or dataset.yaml beside the labels or up to two folders
above; a name may also stand in place of a class's number.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.common import Entry, Source, format_error, table_from_entries
from roialign_cli.inputs.boxes.formats.text_files import class_names, find_image, label_files, read_lines
from roialign_cli.inputs.boxes.shape_parsing import polygon
from roialign_cli.inputs.boxes.units import Units
from roialign_cli.shapes import NO_SHAPE, Shape
from roialign_cli.types import BoxTable

OBB_NUMBERS = 8  # four corners
MAX_RELATIVE = 1.5  # a larger number is a pixel, not a share of the image
EXPECTED = "expected class, centre x, centre y, width, height, relative to the image"


def read(source: Source) -> BoxTable:
    """Read files sorted by path. Raises InputError.

    If some of the files have no image, their boxes are read and their images count as missing; if none of the files has
    an image, that is an error.
    """
    paths, names, units = label_files(source), class_names(source), source.units("cxcywh-relative")
    entries, without_image = [], []
    for path in paths:
        image, exists = find_image(source, path)
        if not exists:
            without_image.append(path)
        entries.append(_read_file(source, path, image, names, units))
    if len(without_image) == len(paths):
        found = f'found no image for "{without_image[0]}"' if without_image else "found no .txt file"
        raise format_error(source.path, f"expected YOLO label files of the images, {found}")
    return table_from_entries(source, entries, units)


def _read_file(source: Source, path: Path, image: str, names: list[str], units: Units) -> Entry:
    boxes: list[list[float]] = []
    labels: list[int | str] = []
    scores: list[float] = []
    shapes: list[Shape] = []
    for number, fields in read_lines(source, path):
        where = f"{path}: line {number}"
        try:
            values = [float(field) for field in fields[1:]]
        except ValueError:
            raise format_error(where, f"{EXPECTED}, found {' '.join(fields)[:80]!r}") from None
        labels.append(_label(where, fields[0], names))
        if units.relative and max(map(abs, values), default=0) > MAX_RELATIVE:
            raise _pixels_error(where, fields, values)
        if len(values) == OBB_NUMBERS + 1:  # oriented boxes of a detector end with a score
            scores.append(values.pop())
        if len(values) in (4, 5):
            boxes.append(values[:4])
            scores += values[4:]
            shapes.append(NO_SHAPE)
        elif len(values) >= 6 and len(values) % 2 == 0:
            xs, ys = values[::2], values[1::2]
            corners = np.array([[min(xs), min(ys), max(xs), max(ys)]])
            boxes.append(units.numbers(corners)[0].tolist())
            shapes.append(polygon(where, [values]) if source.region != "box" else NO_SHAPE)
        else:
            raise format_error(where, f"{EXPECTED}, found {len(fields)} numbers")
    if scores and len(scores) < len(boxes):
        raise format_error(path, "expected a score on every line or on none, found both")
    return Entry(image, np.array(boxes, np.float64).reshape(-1, 4), labels, scores or None, shapes=shapes)


def _label(where: str, text: str, names: list[str]) -> int | str:
    """Return a class by its number, or the name that stands in its place."""
    try:
        number = float(text)
    except ValueError:
        return text
    if not number.is_integer() or number < 0:
        raise format_error(where, f"{EXPECTED}, found the class {text[:80]!r}")
    if names and number >= len(names):
        raise format_error(where, f"expected one of {len(names)} classes, numbered from 0, found {int(number)}")
    return names[int(number)] if names else int(number)


def _pixels_error(where: str, fields: list[str], values: list[float]) -> InputError:
    """Return the error of a line in pixels, with a hint that names what reads it."""
    found = f"{EXPECTED}, found pixels: {' '.join(fields)[:80]!r}"
    if len(values) not in (4, 5):
        return format_error(where, found, "--box-units cxcywh reads pixels")
    roles = ["x", "y", "w", "h"]
    first = len(values) == 5 and 0 <= values[0] <= 1  # the score comes first
    box = values[1:] if first else values[:4]
    if box[2] > box[0] and box[3] > box[1]:
        roles = ["x1", "y1", "x2", "y2"]
    centred = ", or cx cy in place of x y" if "w" in roles else ""
    if len(values) == 5:
        roles = ["score", *roles] if first else [*roles, "score"]
    return format_error(where, found, f'--columns "{" ".join(["label", *roles])}"{centred}')
