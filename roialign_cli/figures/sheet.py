"""Draw a contact sheet of the RoIs of a feature file, with their first three principal components as colours."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from roialign_cli.errors import InputError, OutputError
from roialign_cli.figures.colours import principal
from roialign_cli.figures.style import STYLE, drawable
from roialign_cli.store.reader import FeatureFile

COLUMNS = 8
MAX_REGIONS = 64


def draw_sheet(file: FeatureFile, layer: str | None, name: str | None) -> Figure:
    """Draw at most MAX_REGIONS evenly spread RoIs of images that are done, or those of one image.

    Raises InputError if there are none.
    """
    rows = _rows(file, name)
    total = len(rows) if name is not None else int(file.offset[-1])
    if not len(rows):
        raise InputError("sheet-empty", f"{file.path}: expected boxes of images that are done, found none")
    if layer is not None and layer not in file.layers:
        raise OutputError("layer-unknown", f"{file.path}: expected one of {', '.join(file.layers)}, found {layer!r}")
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(MAX_REGIONS, len(rows))).astype(np.int64))]
    found = torch.from_numpy(np.array(file.features(layer or file.layers[0])[rows], np.float32))
    # [n, PH, PW, C]; points are a row of bins, reduced features have one bin.
    regions = {2: found[:, None, None], 3: found[:, None], 4: found.movedim(1, -1)}[found.dim()]
    colours = principal(regions.flatten(0, 2), 3)(regions).numpy()
    with rc_context(STYLE):
        across = min(COLUMNS, len(rows))
        down = -(-len(rows) // across)
        figure = Figure(figsize=(1.4 * across, 1.65 * down + 0.4), layout="constrained")
        for axes in figure.subplots(down, across, squeeze=False).flat:
            axes.set_axis_off()
        for axes, row, tile in zip(figure.axes, rows.tolist(), colours, strict=False):
            axes.imshow(tile)
            axes.set_title(_title(file, row), fontsize=6, loc="left", parse_math=False)
        title = f"{drawable(file.path.name)}: {len(rows)} of {total} boxes, three principal components"
        figure.suptitle(title, fontsize=9, parse_math=False)
        return figure


def _rows(file: FeatureFile, name: str | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the rows to draw from: those of one image, or of all images that are done."""
    if name is not None:
        if name not in file:
            raise InputError("image-unknown", f'{file.path}: expected the name of an image in it, found "{name}"')
        rows = file.rows(name)
        file[name]  # raises if it is not done
        return np.arange(rows.start, rows.stop)
    return file.done_rows


def _title(file: FeatureFile, row: int) -> str:
    """Return image and box, shortened to fit, and the label."""
    image = int(np.searchsorted(file.offset, row, side="right")) - 1
    name, number = drawable(file.names[image]), row - int(file.offset[image])
    short = name if len(name) <= 16 else f"…{name[-15:]}"
    if "labels" not in file.extents:
        return f"{short} {number}"
    label = file.dataset("labels")[row]
    return f"{short} {number}\n{(label.decode('utf-8', 'replace') if isinstance(label, bytes) else str(label))[:20]}"
