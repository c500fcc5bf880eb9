"""Read native JSON: {"a.jpg": [[x1, y1, x2, y2], ...]} or {"a.jpg": {"boxes": [...], "labels", "scores", "ids"}}."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
from roialign_cli.types import BoxTable

Number = float | str  # NaN and Infinity are strings that start with NUL, see `json_objects`
Box = tuple[Number, Number, Number, Number]


class Entry(msgspec.Struct):
    """The boxes of one image, with a label, score and id for each where the file has them."""

    boxes: list[Box]
    labels: list[int | str] | None = None
    scores: list[float] | None = None
    ids: list[int | str] | None = None


FIELD_NAMES = quoted_field_names(Entry)
_decoder = msgspec.json.Decoder(list[Box] | Entry)


def read(source: Source) -> BoxTable:
    """Read the boxes of each image. Raises InputError naming the image."""
    return decode(source, decode_top_level(source.path, source.read()))


def decode(source: Source, keys: Mapping[str, msgspec.Raw]) -> BoxTable:
    """Decode the boxes of each image from the undecoded values in `keys`. Raises InputError naming the image."""
    path = str(source.path)
    entries: list[Entry] = []
    for name, raw in keys.items():
        where = f'{path}: "{name}"'
        try:
            value = _decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise format_error(where, _reason(error), "each box is [x1, y1, x2, y2]") from None
        if isinstance(value, Entry):
            check_field_names(where, bytes(raw), FIELD_NAMES)
        entry = value if isinstance(value, Entry) else Entry(value)
        entries.append(entry)
        for extra in ("labels", "scores", "ids"):
            values = getattr(entry, extra)
            if values is not None and len(values) != len(entry.boxes):
                found = f"expected {len(entry.boxes)} {extra}, one per box, found {len(values)}"
                raise format_error(where, found)
    return BoxTable(
        names=PackedNames.from_strings(keys),
        offset=offsets([len(entry.boxes) for entry in entries]),
        **box_columns(np.array([_numbers(path, name, i, box) for name, entry in zip(keys, entries, strict=True)
                                for i, box in enumerate(entry.boxes)], np.float64).reshape(-1, 4), source.units("xyxy")),
        labels=_join_column(path, keys, entries, "labels"),
        scores=None if (scores := _join_column(path, keys, entries, "scores")) is None else as_scores(scores),
        ids=_join_column(path, keys, entries, "ids"),
    )  # fmt: skip


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
        if getattr(entry, extra) is None and entry.boxes:
            raise format_error(f'{path}: "{name}"', f"expected {extra} as other images have them, found none")
    values = [value for entry in entries for value in getattr(entry, extra) or []]
    return np.array(values, np.float64) if extra == "scores" else as_column(values)
