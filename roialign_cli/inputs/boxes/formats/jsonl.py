"""Read JSON Lines: {"image": "a.jpg", "boxes": [[x1, y1, x2, y2], ...], "labels", "scores", "ids"} per line."""

from __future__ import annotations

import msgspec

from roialign_cli.inputs.boxes.common import Source, format_error
from roialign_cli.inputs.boxes.formats import native
from roialign_cli.inputs.boxes.json_objects import check_field_names, quoted_field_names
from roialign_cli.types import BoxTable


class Line(msgspec.Struct):
    """The image of a line; its other keys are read as those of native JSON."""

    image: str


FIELD_NAMES = quoted_field_names(Line)


def read(source: Source) -> BoxTable:
    """Read the boxes line by line. Raises InputError naming the line."""
    keys: dict[str, msgspec.Raw] = {}
    with source.open() as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            where = f"{source.path}: line {number}"
            try:
                image = msgspec.json.decode(text, type=Line).image
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                expected = 'expected {"image": "a.jpg", "boxes": [...]}'
                raise format_error(where, f"{expected}, found: {error}") from None
            if image in keys:
                raise format_error(where, f'"{image}": expected each image once, found it twice')
            check_field_names(where, text, FIELD_NAMES)
            keys[image] = msgspec.Raw(text)
    return native.decode(source, keys)
