"""Read native JSON: {"a.jpg": [[x1, y1, x2, y2], ...]} or {"a.jpg": {"boxes": [...], "labels", "scores", "ids"}}.

Other keys hold a region per box: "polygons", "rle", "rotated" and "points". Without "boxes", these are around the regions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.boxes.common import (
    Column,
    Source,
    as_column,
    as_scores,
    box_columns,
    format_error,
    offsets,
)
from roialign_cli.inputs.boxes.json_objects import check_field_names, decode_top_level, quoted_field_names
from roialign_cli.inputs.boxes.shape_parsing import Number, Runs, enclosing_box, points, polygon, rotated, runs
from roialign_cli.inputs.boxes.units import Units
from roialign_cli.shapes import NO_SHAPE, Shape, Shapes
from roialign_cli.types import BoxTable

Box = tuple[Number, Number, Number, Number]


class Entry(msgspec.Struct):
    """The boxes of one image, with a label, score, id and region for each where the file has them.

    Regions are decoded if they are needed.
    """

    boxes: list[Box] | None = None
    labels: list[int | str] | None = None
    scores: list[float] | None = None
    ids: list[int | str] | None = None
    polygons: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    rle: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    rotated: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    points: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True)
class Kind:
    """The key of one kind of regions: how its list is decoded, and how an item becomes a shape."""

    key: str
    decoder: msgspec.json.Decoder[list[Any]]
    shape: Callable[[str, Any], Shape]
    example: str


POLYGON = Kind(
    "polygons",
    msgspec.json.Decoder(list[list[list[Number]] | None]),
    polygon,
    "polygons of a box are [[x, y, x, y, ...], ...]",
)
RLE = Kind(
    "rle", msgspec.json.Decoder(list[Runs | None]), lambda where, mask: runs(where, mask.size, mask.counts),
    'run lengths of a box are {"size": [height, width], "counts": ...}',
)  # fmt: skip
TURNED = Kind(
    "rotated", msgspec.json.Decoder(list[list[Number] | None]), rotated, "each is [cx, cy, width, height, angle]"
)
POINT = Kind(
    "points",
    msgspec.json.Decoder(list[list[list[Number]] | None]),
    points,
    "points of a box are [[x, y, visibility], ...]",
)
KINDS = {  # that serve as regions, the first that a box has wins
    "box": (POLYGON, RLE, TURNED, POINT), "mask": (POLYGON, RLE, TURNED), "rotated": (TURNED, POLYGON), "points": (POINT,),
}  # fmt: skip
FIELD_NAMES = quoted_field_names(Entry)
_decoder = msgspec.json.Decoder(list[Box] | Entry)


def read(source: Source) -> BoxTable:
    """Read the boxes of each image. Raises InputError naming the image."""
    return decode(source, decode_top_level(source.path, source.read()))


def decode(source: Source, keys: Mapping[str, msgspec.Raw]) -> BoxTable:
    """Decode the boxes of each image from the undecoded values in `keys`. Raises InputError naming the image."""
    path = str(source.path)
    entries: list[Entry] = []
    boxes: list[list[Box]] = []
    regions: list[Shape] = []
    units = source.units("xyxy")
    for name, raw in keys.items():
        where = f'{path}: "{name}"'
        try:
            value = _decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise format_error(where, _reason(error), "each box is [x1, y1, x2, y2]") from None
        if isinstance(value, Entry):
            check_field_names(where, bytes(raw), FIELD_NAMES)
        entry = value if isinstance(value, Entry) else Entry(value)
        shapes = _shapes(where, entry, KINDS[source.region]) if source.region != "box" else []
        if entry.boxes is None:
            boxes.append(_enclosing_boxes(where, shapes or _shapes(where, entry, KINDS["box"]), units))
        else:
            boxes.append(entry.boxes)
        number = len(boxes[-1])
        if shapes and len(shapes) != number:
            raise format_error(where, f"expected {number} regions, one per box, found {len(shapes)}")
        regions += shapes or [NO_SHAPE] * number
        entries.append(entry)
        for extra in ("labels", "scores", "ids"):
            values = getattr(entry, extra)
            if values is not None and len(values) != number:
                found = f"expected {number} {extra}, one per box, found {len(values)}"
                raise format_error(where, found)
    return BoxTable(
        names=PackedNames.from_strings(keys),
        offset=offsets(list(map(len, boxes))),
        **box_columns(np.array([_numbers(path, name, i, box) for name, of_image in zip(keys, boxes, strict=True)
                                for i, box in enumerate(of_image)], np.float64).reshape(-1, 4), units),
        labels=_join_column(path, keys, entries, "labels"),
        scores=None if (scores := _join_column(path, keys, entries, "scores")) is None else as_scores(scores),
        ids=_join_column(path, keys, entries, "ids"),
        shapes=None if source.region == "box" else Shapes.pack(regions),
    )  # fmt: skip


def _shapes(where: str, entry: Entry, kinds: Sequence[Kind]) -> list[Shape]:
    """Return the shape of each box by the first kind that it has; an empty list if the image has none of the kinds."""
    found: list[Shape] = []
    for kind in kinds:
        raw = getattr(entry, kind.key)
        if raw is msgspec.UNSET:
            continue
        try:
            items = kind.decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise format_error(where, f"{kind.key}: {_reason(error)}", kind.example) from None
        shapes = [
            NO_SHAPE if item is None else kind.shape(f"{where}, {kind.key} {i}", item) for i, item in enumerate(items)
        ]
        found = [b if a is NO_SHAPE else a for a, b in zip_longest(found, shapes, fillvalue=NO_SHAPE)]
    return found


def _enclosing_boxes(where: str, shapes: list[Shape], units: Units) -> list[Box]:
    """Return the boxes around shapes, in the units of the file. Raises InputError if there is nothing, or one has no shape."""
    if not shapes or any(shape is NO_SHAPE for shape in shapes):
        found = f"none, and no region of box {shapes.index(NO_SHAPE)}" if shapes else "none"
        raise format_error(where, f"expected boxes, polygons, rle, rotated or points, found {found}")
    corners = np.array([enclosing_box(shape) for shape in shapes])
    return [(x, y, z, w) for x, y, z, w in units.numbers(corners).tolist()]


def _reason(error: msgspec.DecodeError) -> str:
    """Return the message of a decoding error in the style of the other errors, with the index of the box."""
    reason, _, place = str(error).partition(" - at `$")
    reason = reason[:1].lower() + reason[1:].replace(" | str", "").replace("`", "")
    box = re.search(r"\[(\d+)\]", place)
    return f"box {box[1]}: {reason}" if box else f"{place.rstrip('`')} {reason}".lstrip(" .")


def _numbers(path: str, name: str, index: int, box: Box) -> list[float]:
    for value in box:
        if isinstance(value, str) and not value.startswith("\0"):
            raise format_error(f'{path}: "{name}", box {index}', f"expected four numbers, found {value!r}")
    return [float(value[1:]) if isinstance(value, str) else value for value in box]


def _join_column(path: str, keys: Mapping[str, msgspec.Raw], entries: list[Entry], extra: str) -> Column | None:
    """Return one column for all images, or None if no image has it. Raises InputError if only some images have it."""
    if all(getattr(entry, extra) is None for entry in entries):
        return None
    for name, entry in zip(keys, entries, strict=True):
        if getattr(entry, extra) is None and entry.boxes != []:
            raise format_error(f'{path}: "{name}"', f"expected {extra} as other images have them, found none")
    values = [value for entry in entries for value in getattr(entry, extra) or []]
    return np.array(values, np.float64) if extra == "scores" else as_column(values)
