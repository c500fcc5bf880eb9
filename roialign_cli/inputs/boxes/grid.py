"""Make boxes without a box file: the whole of every image, or a grid of equal cells."""

from __future__ import annotations

import re

import numpy as np

from roialign_cli.errors import ConfigError
from roialign_cli.inputs.boxes.common import as_boxes, offsets
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.inputs.boxes.room import all_images
from roialign_cli.types import BoxTable


def make(grid: str, images: ImageNames) -> BoxTable:
    """Return ROWSxCOLUMNS cells of every image in the folder, row by row, with images sorted by name.

    Raises ConfigError if the grid cannot be parsed, InputError if the folder has no images.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", grid)
    if match is None:
        raise ConfigError("config-value", f"grid: expected ROWSxCOLUMNS such as 3x3, found {grid!r}")
    rows, columns = int(match[1]), int(match[2])
    y, x = np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1)
    top, left = (side.ravel() for side in np.meshgrid(y[:-1], x[:-1], indexing="ij"))
    bottom, right = (side.ravel() for side in np.meshgrid(y[1:], x[1:], indexing="ij"))
    cells = np.stack([left, top, right, bottom], axis=1)
    names = all_images(images)
    return BoxTable(
        names=names,
        offset=offsets([len(cells)] * len(names)),
        boxes=as_boxes(np.tile(cells, (len(names), 1))),
        relative_boxes=np.tile(cells, (len(names), 1)),
        sha256=f"grid {grid}",
    )
