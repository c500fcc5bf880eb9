"""Read DOTA, a text file per image with a line per object: four corners in pixels, category, difficulty.

The box is the smallest upright one around the corners (captain-whu.github.io/DOTA, "Annotation format"); their order says
where the top of a rotated box is.
"""

from __future__ import annotations

import numpy as np

from roialign_cli.inputs.boxes.common import Entry, Source, format_error, table_from_entries
from roialign_cli.inputs.boxes.formats.text_files import find_image, label_files, read_lines
from roialign_cli.inputs.boxes.shape_parsing import polygon
from roialign_cli.inputs.boxes.units import Units
from roialign_cli.types import BoxTable

CORNER_NUMBERS = 8
HEADER_KEYS = ("imagesource", "gsd")  # of the first lines


def read(source: Source) -> BoxTable:
    """Read files sorted by path. Raises InputError."""
    entries = []
    for path in label_files(source):
        boxes, labels, shapes = [], [], []
        for number, fields in read_lines(source, path):
            if is_header(fields):
                continue
            corners = _corners(fields)
            if corners is None:
                found = " ".join(fields)[:80]
                raise format_error(
                    f"{path}: line {number}", f"expected eight numbers, category, difficulty, found {found!r}"
                )
            boxes.append([min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2])])
            labels.append(fields[CORNER_NUMBERS])
            if source.region != "box":
                shapes.append(polygon(f"{path}: line {number}", [corners]))
        image = find_image(source, path)[0]
        entries.append(Entry(image, np.array(boxes, np.float64).reshape(-1, 4), labels, shapes=shapes))
    return table_from_entries(source, entries, Units("xyxy"))


def is_header(fields: list[str]) -> bool:
    """Return whether a line is one of the first lines of a file, which say where the image comes from."""
    return fields[0].partition(":")[0].lower() in HEADER_KEYS


def looks_like(fields: list[str]) -> bool:
    """Return whether a line is an object of DOTA: eight numbers and a category that is not a number."""
    return is_header(fields) or (_corners(fields) is not None and not fields[CORNER_NUMBERS].replace(".", "").isdigit())


def _corners(fields: list[str]) -> list[float] | None:
    if len(fields) not in (CORNER_NUMBERS + 1, CORNER_NUMBERS + 2):
        return None
    try:
        return [float(field) for field in fields[:CORNER_NUMBERS]]
    except ValueError:
        return None
