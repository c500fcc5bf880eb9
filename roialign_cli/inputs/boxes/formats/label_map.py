"""Read label maps, a PNG per image of the same stem: every value except 0 is a region, whose label is the value.

The PNGs have one channel, or a palette, whose indices are the values. The box of a region is the smallest one around it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from roialign_cli.inputs.boxes.common import Entry, Source, table_from_entries
from roialign_cli.inputs.boxes.formats.text_files import find_image
from roialign_cli.inputs.boxes.shape_parsing import LABEL_MODES, enclosing_box, read_label_image
from roialign_cli.inputs.boxes.units import Units
from roialign_cli.shapes import RUNS, Shape
from roialign_cli.system.safe_read import require_regular_file
from roialign_cli.types import BoxTable

JUDGED_FILES = 20


def read(source: Source) -> BoxTable:
    """Read files sorted by path, the values of each in ascending order. Raises InputError."""
    entries = []
    for path in source.files(".png"):
        content = require_regular_file(path).read_bytes() if source.is_folder else source.read()
        values, shapes = separate(read_label_image(path, content))
        boxes = np.array([enclosing_box(shape) for shape in shapes]).reshape(-1, 4)
        entries.append(Entry(find_image(source, path)[0], boxes, values, shapes=shapes))
    return table_from_entries(source, entries, Units("xyxy"))


def separate(labels: npt.NDArray[np.integer]) -> tuple[list[int], list[Shape]]:
    """Return the values of a map [H, W] except 0, in ascending order, and the region of each."""
    flat = labels.T.reshape(-1)
    begins = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1]) if flat.size else np.empty(0, np.int64)
    ends, value = np.append(begins[1:], flat.size)[: len(begins)], flat[begins]
    order = np.argsort(value, kind="stable")
    found, first = np.unique(value[order], return_index=True)
    values, shapes = [], []
    for number, rows in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        if number:
            edges = np.stack([begins[rows], ends[rows]], axis=1).reshape(-1)
            counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
            values.append(number)
            shapes.append(Shape(RUNS, (), counts, (labels.shape[0], labels.shape[1])))
    return values, shapes


def looks_like(source: Source, paths: list[Path]) -> bool:
    """Return whether PNGs are label maps: of one channel or with a palette, each with the stem of an image elsewhere."""
    for path in paths[:JUDGED_FILES]:
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if image.mode not in LABEL_MODES:
                    return False
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return False
        name, exists = find_image(source, path)
        images = source.images.images
        if images is not None and (not exists or images.file(name).path.resolve() == path.resolve()):
            return False
    return bool(paths)
