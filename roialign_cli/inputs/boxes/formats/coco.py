"""Read COCO instances: images, annotations with bbox [x, y, width, height], and categories (cocodataset.org/#format-data).

Annotations without bbox get the bounding box of their segmentation or keypoints; a bbox of five numbers, as detectron2
writes it, is a rotated box. Shapes are read if the settings ask for regions, see `coco_shapes`.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    note_missing,
    offsets,
    unify_types,
)
from roialign_cli.inputs.boxes.formats.coco_shapes import (
    TYPES,
    Annotation,
    AnyAnnotation,
    Outlined,
    box_numbers,
    pack_shapes,
)
from roialign_cli.inputs.boxes.json_objects import decode_top_level
from roialign_cli.shapes import Shapes
from roialign_cli.types import BoxTable

Indices = npt.NDArray[np.int32]
MAX_SIDE = 1 << 31  # pixels; an image that is said to be larger has no stated size
PART_BYTES = (
    1 << 18
)  # annotations that are decoded at a time: few enough that their numbers stay in the processor's cache
OBJECT_END = re.compile(rb"\}\s*,")
# Errors of annotations that have another box than four numbers, and are decoded again with their segmentation.
OTHER_BOX = re.compile(r"missing required field `bbox`|(got `null`|of length 4.*) - at `\$\[.*\]\.bbox`")


class Image(msgspec.Struct, gc=False):
    """One entry of `images`."""

    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


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
    parts, count = [_to_columns(source, 0, [], names, image_index)], 0
    with _without_collector():
        for decoded in _iter_annotations(path, keys["annotations"], TYPES[source.region]):
            parts.append(_to_columns(source, count, decoded, names, image_index))
            count += len(decoded)
    keys.clear()
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
        notes=tuple(
            note
            for what, given in zip(
                ("labels", "scores", "ids"), zip(*(part.given for part in parts), strict=True), strict=True
            )
            for note in note_missing(what, sum(given), count)
        ),
        shapes=None
        if source.region == "box"
        else Shapes.join([part.shapes for part in parts if part.shapes is not None], row),
    )


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from searching millions of lists for cycles, which takes as long as decoding them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_images(
    path: str, keys: Mapping[str, msgspec.Raw]
) -> tuple[PackedNames, Integers | None, dict[int | str, int]]:
    """Return the names, the sizes [M, 2] as (height, width) if all are stated, and the index of each id."""
    images: list[Image] = _decode(path, keys, "images", list[Image])
    names = [image.file_name for image in images]
    image_index = {image.id: i for i, image in enumerate(images)}
    if len(image_index) < len(images) or len(set(names)) < len(images):
        raise format_error(f"{path}: images", "expected every id and file_name once, found one twice")
    sides = [(image.height or 0, image.width or 0) for image in images]
    known = all(0 < side < MAX_SIDE for size in sides for side in size)
    return PackedNames.from_strings(names), np.array(sides, np.int64).reshape(-1, 2) if known else None, image_index


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
    shapes: Shapes | None
    given: tuple[int, ...]  # how many have a category, a score and an id


def _to_columns(
    source: Source,
    first: int,
    annotations: Sequence[AnyAnnotation],
    names: PackedNames,
    image_index: Mapping[int | str, int],
) -> Columns:
    """Convert annotations to columns; `first` is the index of the first one in the file, for error messages."""
    units = source.units("xywh")

    def where(i: int) -> str:
        return f'{source.path}: annotations[{first + i}] of "{names[owner[i]]}"'

    owner = [image_index.get(annotation.image_id, -1) for annotation in annotations]
    if -1 in owner:
        i = owner.index(-1)
        found = f"expected the id of an image, found image_id {annotations[i].image_id!r}"
        raise format_error(f"{source.path}: annotations[{first + i}]", found)
    boxes = units.corners(box_numbers(annotations, units, where))
    columns: list[list[Any]] = [
        [annotation.category_id for annotation in annotations],
        [annotation.score for annotation in annotations],
        [annotation.id for annotation in annotations],
    ]
    category, score, identity = map(_column_or_none, columns)
    return Columns(
        owner=np.array(owner, np.int32),
        boxes=as_boxes(boxes),
        exact=boxes if units.relative else None,
        category=category,
        score=score,
        id=identity,
        crowd=np.array([annotation.iscrowd != 0 for annotation in annotations], np.bool_),
        shapes=None if source.region == "box" else pack_shapes(annotations, source.region, where),
        given=tuple(len(values) - values.count(None) for values in columns),
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


def _iter_annotations(path: str, raw: msgspec.Raw, kind: Any) -> Iterator[Sequence[AnyAnnotation]]:
    """Yield the annotations some thousands at a time: all at once they would take ten times the memory of the file.

    The text is cut where an object seems to end. If that is inside a string or another object, the part is not valid
    JSON, and the next candidate is tried.
    """
    text, decoder = memoryview(raw), msgspec.json.Decoder(list[kind])
    first = 0  # index of the first annotation of the part
    begin = 0
    while begin < len(text):
        search = begin + PART_BYTES
        while True:
            cut = OBJECT_END.search(text, search)
            part = text[begin:] if cut is None else b"".join((text[begin : cut.start() + 1], b"]"))
            try:
                part = part if begin == 0 else b"".join((b"[", part))
                found = decoder.decode(part)
                break
            except msgspec.ValidationError as error:
                if kind is Annotation and OTHER_BOX.search(str(error)):
                    found = _decode_any(path, first, part)
                    break
                raise _entry_error(path, "annotations", error, first) from None
            except msgspec.DecodeError:
                if cut is None:
                    raise
                search = begin + 2 * (cut.end() - begin)  # doubled, because each attempt decodes the part again
        yield found
        first += len(found)
        begin = len(text) if cut is None else cut.end()


def _decode_any(path: str, first: int, text: bytes | memoryview) -> list[Outlined]:
    """Return annotations of which some have no bbox, or one with an angle."""
    try:
        return msgspec.json.decode(text, type=list[Outlined])
    except msgspec.ValidationError as error:
        raise _entry_error(path, "annotations", error, first) from None


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


def _labels(path: str, category: Column, names: dict[int, str]) -> Column:
    """Return the category names of rows, or their numbers if the file has no names. Raises InputError for unknown ones."""
    if not names:
        return category
    used, index = np.unique(category, return_inverse=True)
    unknown = [int(number) for number in used if int(number) not in names]
    if unknown:
        raise format_error(f"{path}: annotations", f"expected a category_id listed in categories, found {unknown[0]}")
    return as_column([names[int(number)] for number in used])[index]
