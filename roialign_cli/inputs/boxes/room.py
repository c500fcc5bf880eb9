"""Make room for boxes that only the run finds: as many rows as an image can have boxes, which are empty at first."""

from __future__ import annotations

import numpy as np

from roialign_cli.arrays import PackedNames
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.types import BoxTable

NO_BOX = -1.0  # the score of a row without a box


def make_room(most: int, images: ImageNames) -> BoxTable:
    """Return a table with `most` empty rows for each image; labels are numbers, and scores say which rows have a box.

    Raises InputError if there are no images.
    """
    names = all_images(images)
    rows = most * len(names)
    return BoxTable(
        names=names,
        offset=np.arange(0, rows + 1, most, dtype=np.int64),
        boxes=np.zeros((rows, 4), np.float32),
        labels=np.zeros(rows, np.int64),
        scores=np.full(rows, NO_BOX, np.float32),
        sha256="detect",
    )


def all_images(images: ImageNames) -> PackedNames:
    """Return the names of all images, sorted. Raises InputError if there are none."""
    names = PackedNames.from_strings(sorted(images.all))
    if not names:
        where = images.images.where if images.images is not None else "images"
        raise InputError("images-empty", f"{where}: expected images, found none")
    return names
