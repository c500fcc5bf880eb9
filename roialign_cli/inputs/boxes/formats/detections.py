"""Read what evaluation tools write: a text file per image with lines of class, score and a box.

The box is in pixels as corners or with width and height, or relative to the image with a centre. Which one it is follows
from where the boxes lie in their images; if that does not tell, it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from roialign_cli.inputs.boxes.common import Column, Source, format_error
from roialign_cli.inputs.boxes.formats import text
from roialign_cli.inputs.boxes.formats.text_files import class_names, find_image, label_files, read_lines
from roialign_cli.inputs.boxes.units import Numbers, Units
from roialign_cli.inputs.images import ImageError, read_size
from roialign_cli.types import BoxTable

FIELDS = 6
JUDGED_FILES = 200  # whose lines are looked at
FITTING_SHARE = 0.95  # of the boxes must lie in their images in the right layout
SLACK = 0.02  # of the image's sides, by which boxes may reach out of it


# Corners of the boxes from the five numbers [R, 5] after the class.
RELATIVE: Mapping[str, Callable[[Numbers], Numbers]] = {
    "label cx cy w h score": lambda n: Units("cxcywh").corners(n[:, :4]),
    "label score cx cy w h": lambda n: Units("cxcywh").corners(n[:, 1:]),
}
PIXELS: Mapping[str, Callable[[Numbers], Numbers]] = {
    "label score x1 y1 x2 y2": lambda n: n[:, 1:],
    "label score x y w h": lambda n: Units("xywh").corners(n[:, 1:]),
}
YOLO = "label cx cy w h score"


def read(source: Source) -> BoxTable:
    """Read files sorted by path. Raises InputError if the lines have no layout that is known, or fit two of them."""
    fitting = fitting_layouts(source)
    if len(fitting) != 1:
        expected = "expected lines of class, score and a box inside of its image"
        found = f"found lines that fit {' and '.join(map(repr, fitting))}" if fitting else "found others"
        hint = f'name the columns: --columns "{fitting[0] if fitting else next(iter(PIXELS))}"'
        raise format_error(source.path, f"{expected}, {found}", hint)
    table = text.read(source, fitting[0].split())
    names = class_names(source)
    if names and table.labels is not None and table.labels.dtype.kind == "i":
        return _with_names(source, table, table.labels, names)
    return table


def fitting_layouts(source: Source) -> list[str]:
    """Return the layouts of columns in which nearly all boxes lie in their images."""
    rows, sizes = [], []
    for path in label_files(source)[:JUDGED_FILES]:
        found = [row for _, fields in read_lines(source, path) if (row := _numbers(fields)) is not None]
        rows += found
        sizes += [_size(source, path)] * len(found)
    if not rows:
        return []
    numbers = np.array(rows)
    fits_relative = [name for name, corners in RELATIVE.items() if _fits(numbers, corners(numbers), name, np.ones(4))]
    if fits_relative:
        return fits_relative
    limits = np.array(sizes, np.float64)[:, [1, 0, 1, 0]]
    known = limits.min(axis=1) > 0
    numbers, limits = numbers[known], limits[known]
    return [name for name, corners in PIXELS.items() if len(numbers) and _fits(numbers, corners(numbers), name, limits)]


def _fits(numbers: Numbers, corners: Numbers, layout: str, limits: Numbers) -> bool:
    """Return whether the scores of rows are scores, and nearly all boxes lie within the limits (width, height, ...)."""
    score = numbers[:, layout.split().index("score") - 1]
    ordered = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    inside = ((corners >= -SLACK * limits) & (corners <= (1 + SLACK) * limits)).all(axis=1)
    return bool(((score >= 0) & (score <= 1)).all() and (ordered & inside).mean() >= FITTING_SHARE)


def _numbers(fields: list[str]) -> list[float] | None:
    """Return the five numbers after the class, or None for a line of another form."""
    if len(fields) != FIELDS:
        return None
    try:
        return [float(field) for field in fields[1:]]
    except ValueError:
        return None


def _size(source: Source, path: Path) -> tuple[int, int]:
    """Return (height, width) of the image of a file, zeros if it cannot be read."""
    name, exists = find_image(source, path)
    if not exists or source.images.images is None:
        return 0, 0
    try:
        return read_size(source.images.images.file(name))
    except ImageError:
        return 0, 0


def _with_names(source: Source, table: BoxTable, numbers: Column, names: list[str]) -> BoxTable:
    """Return the table with the names of its classes in place of their numbers."""
    from dataclasses import replace

    highest = int(numbers.max(initial=0))
    if highest >= len(names) or int(numbers.min(initial=0)) < 0:
        raise format_error(source.path, f"expected one of {len(names)} classes, numbered from 0, found {highest}")
    return replace(table, labels=np.array(names)[numbers])
