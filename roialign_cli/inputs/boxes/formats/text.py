"""Read a folder of text files, one per image, with a row per box in the columns that --columns names."""

from __future__ import annotations

import numpy as np

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.boxes.columns import map_columns
from roialign_cli.inputs.boxes.common import Source, format_error
from roialign_cli.inputs.boxes.formats.csv import make_table, read_rows, split_columns, without_header
from roialign_cli.inputs.boxes.formats.text_files import find_image, label_files
from roialign_cli.types import BoxTable


def read(source: Source, roles: list[str]) -> BoxTable:
    """Read files sorted by path, whose rows have these columns; the image is the one with the stem of the file.

    Raises InputError.
    """
    names, rows, counts = [], [], []
    for path in label_files(source):
        names.append(find_image(source, path)[0])
        found = without_header(read_rows(str(path), path.read_bytes()), roles)
        split_columns(str(path), roles, found, 1)
        rows += found
        counts.append(len(found))
    if not names:
        raise format_error(source.path, "expected .txt files with a row per box, found none")
    if len(set(names)) < len(names):
        name = next(name for i, name in enumerate(names) if name in names[:i])
        raise format_error(source.path, f'"{name}": expected one file per image, found two')
    mapping = map_columns(source, [*roles, "image"])
    columns = split_columns(str(source.path), roles, rows, 1)
    return make_table(
        source, mapping, columns, PackedNames.from_strings(names), np.repeat(np.arange(len(names)), counts)
    )
