"""Read COCO instances: images, annotations with bbox [x, y, width, height], and categories (cocodataset.org/#format-data).

Annotations that have polygons and no bbox get the bounding box of their polygons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Floats, Integers, PackedNames
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.common import (
    Column,
    Source,
    as_boxes,
    as_column,
    as_scores,
    format_error,
    offsets,
    unify_types,
)
from roialign_cli.inputs.boxes.json_objects import decode_top_level
from roialign_cli.inputs.boxes.units import Units
from roialign_cli.types import BoxTable

Indices = npt.NDArray[np.int32]
PART_BYTES = 1 << 20  # annotations that are decoded at a time
OBJECT_END = re.compile(rb"\}\s*,")
Number = float | str  # NaN and Infinity are strings that start with NUL, see `json_objects`


class Image(msgspec.Struct, gc=False):
    """One entry of `images`."""

    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class Annotation(msgspec.Struct, gc=False):
    """One entry of `annotations`; other keys, such as segmentations, are skipped and not decoded."""

    image_id: int | str
    bbox: tuple[Number, Number, Number, Number]
    category_id: int | None = None
    id: int | str | None = None
    score: float | None = None
    iscrowd: int = 0


class Polygons(msgspec.Struct, gc=False):
    """What is read of an annotation whose file has some without a bbox."""

    image_id: int | str
    bbox: tuple[Number, Number, Number, Number] | None = None
    segmentation: list[list[float]] | dict[str, msgspec.Raw] = []
    category_id: int | None = None
    id: int | str | None = None
    score: float | None = None
    iscrowd: int = 0


class Category(msgspec.Struct):
    """One entry of `categories`."""

    id: int
    name: str


def read(source: Source) -> BoxTable:
    """Return the boxes sorted by image in the order of `images`; labels are category names where the file has them.

    Raises InputError.
    """
    path, units = str(source.path), source.units("xywh")
    keys = decode_top_level(source.path, source.read())
    for key in ("images", "annotations"):
        if key not in keys:
            raise format_error(path, f"expected COCO instances with {key!r}, found only {', '.join(list(keys)[:5])}")
    names, sizes, image_index = _read_images(path, keys)
    categories: list[Category] = _decode(path, keys, "categories", list[Category]) if "categories" in keys else []
    parts, count = [_to_columns(path, 0, [], image_index, units)], 0
    for decoded in _iter_annotations(path, keys["annotations"]):
        parts.append(_to_columns(path, count, decoded, image_index, units))
        count += len(decoded)
    del image_index  # large objects are freed early, so that millions of boxes fit in little memory
    owner = np.concatenate([part.owner for part in parts])
    offset = offsets(np.bincount(owner, minlength=len(names)))
    row = np.empty(count, np.int32)
    row[np.argsort(owner, kind="stable")] = np.arange(count, dtype=np.int32)
    del owner
    category = _sort_column([part.category for part in parts], row)
    scores = _sort_column([part.score for part in parts], row)
    return BoxTable(
        names=names,
        offset=offset,
        labels=None if category is None else _labels(path, category, {c.id: c.name for c in categories}),
        scores=None if scores is None or not count else as_scores(scores),
        ids=_sort_column([part.id for part in parts], row),
        boxes=_scatter([part.boxes for part in parts], row),
        relative_boxes=_scatter([part.exact for part in parts], row) if units.relative else None,
        units=str(units),
        sizes=sizes,
        crowd=_scatter([part.crowd for part in parts], row),
    )


def _read_images(
    path: str, keys: Mapping[str, msgspec.Raw]
) -> tuple[PackedNames, Integers | None, dict[int | str, int]]:
    """Return the names, the sizes [M, 2] as (height, width) if all are stated, and the index of each id."""
    images: list[Image] = _decode(path, keys, "images", list[Image])
    names = [image.file_name for image in images]
    image_index = {image.id: i for i, image in enumerate(images)}
    if len(image_index) < len(images) or len(set(names)) < len(images):
        raise format_error(f"{path}: images", "expected every id and file_name once, found one twice")
    sizes = np.array([(image.height or 0, image.width or 0) for image in images], np.int64).reshape(-1, 2)
    return PackedNames.from_strings(names), sizes if (sizes > 0).all() else None, image_index


@dataclass(frozen=True)
class Columns:
    """Annotations as arrays of n rows, so that millions of them fit in memory; None where some have no value."""

    owner: Indices
    boxes: Floats
    exact: npt.NDArray[np.float64] | None  # boxes as they are in the file, where they are relative
    category: Column | None
    score: Column | None
    id: Column | None
    crowd: npt.NDArray[np.bool_]


def _to_columns(
    path: str, first: int, annotations: list[Annotation], image_index: Mapping[int | str, int], units: Units
) -> Columns:
    """Convert annotations to columns; `first` is the index of the first one in the file, for error messages."""
    owner = [image_index.get(annotation.image_id, -1) for annotation in annotations]
    if -1 in owner:
        i = owner.index(-1)
        found = f"expected the id of an image, found image_id {annotations[i].image_id!r}"
        raise format_error(f"{path}: annotations[{first + i}]", found)
    try:
        numbers = np.array([annotation.bbox for annotation in annotations], np.float64).reshape(-1, 4)
    except ValueError:
        numbers = np.array([_numbers(path, first + i, annotation) for i, annotation in enumerate(annotations)])
    boxes = units.corners(numbers)
    return Columns(
        owner=np.array(owner, np.int32),
        boxes=as_boxes(boxes),
        exact=boxes if units.relative else None,
        category=_column_or_none([annotation.category_id for annotation in annotations]),
        score=_column_or_none([annotation.score for annotation in annotations]),
        id=_column_or_none([annotation.id for annotation in annotations]),
        crowd=np.array([annotation.iscrowd != 0 for annotation in annotations], np.bool_),
    )


def _column_or_none(values: list[Any]) -> Column | None:
    if None in values:
        return None
    return np.array(values) if values and isinstance(values[0], float) else as_column(values)


def _sort_column(parts: list[Column | None], row: Indices) -> Column | None:
    """Join parts into one column whose i-th entry moves to row[i]; None if a part is None. Mixed types become strings."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    joined: Column = _scatter(unify_types(present), row)
    return joined


def _scatter(parts: list[Any], row: Indices) -> Any:
    """Return an array with result[row[i]] = the i-th entry of all parts, without joining the parts first."""
    filled = [part for part in parts if len(part)] or parts[:1]
    result = np.empty((len(row), *filled[0].shape[1:]), np.result_type(*filled))
    begin = 0
    for part in filled:
        result[row[begin : begin + len(part)]] = part
        begin += len(part)
    return result


def _iter_annotations(path: str, raw: msgspec.Raw) -> Iterator[list[Annotation]]:
    """Yield the annotations some thousands at a time: all at once they would take ten times the memory of the file.

    The text is cut where an object seems to end. If that is inside a string or another object, the part is not valid
    JSON, and the next candidate is tried.
    """
    text, decoder = memoryview(raw), msgspec.json.Decoder(list[Annotation])
    first = 0  # index of the first annotation of the part
    begin = 0
    while begin < len(text):
        search = begin + PART_BYTES
        while True:
            cut = OBJECT_END.search(text, search)
            part = text[begin:] if cut is None else b"".join((text[begin : cut.start() + 1], b"]"))
            try:
                found = decoder.decode(part if begin == 0 else b"".join((b"[", part)))
                break
            except msgspec.ValidationError as error:
                if "missing required field `bbox`" in str(error) or "got `null` - at `$[...].bbox`" in str(error):
                    found = _bound_polygons(path, first, part if begin == 0 else b"".join((b"[", part)))
                    break
                raise _entry_error(path, "annotations", error, first) from None
            except msgspec.DecodeError:
                if cut is None:
                    raise
                search = begin + 2 * (cut.end() - begin)  # doubled, because each attempt decodes the part again
        yield found
        first += len(found)
        begin = len(text) if cut is None else cut.end()


def _bound_polygons(path: str, first: int, text: bytes | memoryview) -> list[Annotation]:
    """Return annotations of which some have no bbox, each of these with the bounding box of its polygons."""
    try:
        decoded = msgspec.json.decode(text, type=list[Polygons])
    except msgspec.ValidationError as error:
        raise _entry_error(path, "annotations", error, first) from None
    found = []
    for i, entry in enumerate(decoded):
        box = entry.bbox
        if box is None:
            rings = entry.segmentation if isinstance(entry.segmentation, list) else []
            xs, ys = ([value for ring in rings for value in ring[axis::2]] for axis in (0, 1))
            if not xs or len(xs) != len(ys):
                what = "run lengths" if isinstance(entry.segmentation, dict) else "neither"
                hint = "add them with pycocotools: annotation['bbox'] = mask.toBbox(rle).tolist()"
                raise format_error(
                    f"{path}: annotations[{first + i}]",
                    f"expected bbox or polygons, found {what}",
                    hint * (what != "neither"),
                )
            box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        found.append(Annotation(entry.image_id, box, entry.category_id, entry.id, entry.score, entry.iscrowd))
    return found


def _decode(path: str, keys: Mapping[str, msgspec.Raw], key: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(keys[key], type=kind)
    except msgspec.ValidationError as error:
        raise _entry_error(path, key, error, 0) from None


def _entry_error(path: str, key: str, error: msgspec.ValidationError, first: int) -> InputError:
    """Return the error of an invalid entry; msgspec counts entries from the one with index `first`."""
    reason, _, place = str(error).partition(" - at `$")
    place = re.sub(r"^\[(\d+)\]", lambda match: f"[{int(match[1]) + first}]", place.rstrip("`"))
    return format_error(f"{path}: {key}{place}", reason.replace(" | str", ""))


def _numbers(path: str, index: int, annotation: Annotation) -> list[float]:
    for value in annotation.bbox:
        if isinstance(value, str) and not value.startswith("\0"):
            raise format_error(f"{path}: annotations[{index}]", f"bbox: expected four numbers, found {value!r}")
    return [float(value[1:]) if isinstance(value, str) else value for value in annotation.bbox]


def _labels(path: str, category: Column, names: dict[int, str]) -> Column:
    """Return the category names of rows, or their numbers if the file has no names. Raises InputError for unknown ones."""
    if not names:
        return category
    used, index = np.unique(category, return_inverse=True)
    unknown = [int(number) for number in used if int(number) not in names]
    if unknown:
        raise format_error(f"{path}: annotations", f"expected a category_id listed in categories, found {unknown[0]}")
    return as_column([names[int(number)] for number in used])[index]
