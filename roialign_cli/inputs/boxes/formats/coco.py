"""COCO instances: images, annotations with bbox [x, y, width, height], categories (cocodataset.org, object detection)."""

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
from roialign_cli.inputs.boxes.common import Column, as_boxes, as_scores, column, format_error, offsets, unify_types
from roialign_cli.types import BoxTable

Places = npt.NDArray[np.int32]
PART_BYTES = 1 << 20
OBJECT_END = re.compile(rb"\}\s*,")
Number = float | str  # a string only where NaN or Infinity stood, marked by a leading NUL


class Image(msgspec.Struct, gc=False):
    """One entry of `images`."""

    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class Annotation(msgspec.Struct, gc=False):
    """One entry of `annotations`; segmentations and the like are skipped, not decoded."""

    image_id: int | str
    bbox: tuple[Number, Number, Number, Number]
    category_id: int | None = None
    id: int | str | None = None
    score: float | None = None
    iscrowd: int = 0


class Category(msgspec.Struct):
    """One entry of `categories`."""

    id: int
    name: str


def read(path: str, keys: Mapping[str, msgspec.Raw]) -> BoxTable:
    """Boxes image by image in the order of `images`; labels are category names where the file has them."""
    for key in ("images", "annotations"):
        if key not in keys:
            raise format_error(path, f"expected COCO instances with {key!r}, found only {', '.join(list(keys)[:5])}")
    names, sizes, place = _images(path, keys)
    categories: list[Category] = _decode(path, keys, "categories", list[Category]) if "categories" in keys else []
    parts, count = [_columns(path, 0, [], place)], 0
    for some in _in_parts(path, keys["annotations"]):
        parts.append(_columns(path, count, some, place))
        count += len(some)
    del place  # what is large goes as soon as it has served: millions of boxes shall fit in little memory
    owner = np.concatenate([part.owner for part in parts])
    offset = offsets(np.bincount(owner, minlength=len(names)))
    row = np.empty(count, np.int32)
    row[np.argsort(owner, kind="stable")] = np.arange(count, dtype=np.int32)
    del owner
    category = _ordered([part.category for part in parts], row)
    scores = _ordered([part.score for part in parts], row)
    return BoxTable(
        names=names,
        offset=offset,
        labels=None if category is None else _labels(path, category, {c.id: c.name for c in categories}),
        scores=None if scores is None or not count else as_scores(scores),
        ids=_ordered([part.id for part in parts], row),
        boxes=_gather([part.boxes for part in parts], row),
        sizes=sizes,
        crowd=_gather([part.crowd for part in parts], row),
    )


def _images(path: str, keys: Mapping[str, msgspec.Raw]) -> tuple[PackedNames, Integers | None, dict[int | str, int]]:
    """Names; (height, width) of each if all are stated; and the place of each id."""
    images: list[Image] = _decode(path, keys, "images", list[Image])
    names = [image.file_name for image in images]
    place = {image.id: i for i, image in enumerate(images)}
    if len(place) < len(images) or len(set(names)) < len(images):
        raise format_error(f"{path}: images", "expected every id and file_name once, found one twice")
    sizes = np.array([(image.height or 0, image.width or 0) for image in images], np.int64).reshape(-1, 2)
    return PackedNames.from_strings(names), sizes if (sizes > 0).all() else None, place


@dataclass(frozen=True)
class Columns:
    """Annotations as arrays, so that millions of them fit in memory: [n] each, None where some have no value."""

    owner: Places
    boxes: Floats
    category: Column | None
    score: Column | None
    id: Column | None
    crowd: npt.NDArray[np.bool_]


def _columns(path: str, first: int, annotations: list[Annotation], place: Mapping[int | str, int]) -> Columns:
    """Annotations first, first + 1, ... of the file."""
    owner = [place.get(annotation.image_id, -1) for annotation in annotations]
    if -1 in owner:
        i = owner.index(-1)
        found = f"expected the id of an image, found image_id {annotations[i].image_id!r}"
        raise format_error(f"{path}: annotations[{first + i}]", found)
    try:
        xywh = np.array([annotation.bbox for annotation in annotations], np.float64).reshape(-1, 4)
    except ValueError:
        xywh = np.array([_numbers(path, first + i, annotation) for i, annotation in enumerate(annotations)])
    return Columns(
        owner=np.array(owner, np.int32),
        boxes=as_boxes(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)),
        category=_column([annotation.category_id for annotation in annotations]),
        score=_column([annotation.score for annotation in annotations]),
        id=_column([annotation.id for annotation in annotations]),
        crowd=np.array([annotation.iscrowd != 0 for annotation in annotations], np.bool_),
    )


def _column(values: list[Any]) -> Column | None:
    if None in values:
        return None
    return np.array(values) if values and isinstance(values[0], float) else column(values)


def _ordered(parts: list[Column | None], row: Places) -> Column | None:
    """The parts as one column, in the order of the rows; None if one has none. Numbers among strings become strings."""
    there = [part for part in parts if part is not None]
    if len(there) < len(parts):
        return None
    joined: Column = _gather(unify_types(there), row)
    return joined


def _gather(parts: list[Any], row: Places) -> Any:
    """result[row[i]] = the i-th entry of the parts, without ever holding them all twice."""
    filled = [part for part in parts if len(part)] or parts[:1]
    result = np.empty((len(row), *filled[0].shape[1:]), np.result_type(*filled))
    begin = 0
    for part in filled:
        result[row[begin : begin + len(part)]] = part
        begin += len(part)
    return result


def _in_parts(path: str, raw: msgspec.Raw) -> Iterator[list[Annotation]]:
    """The annotations, some thousands at a time: all at once they would take ten times the memory of the file.

    Cut where an object seems to end. In a string or inside another object that is a mistake, but then the part is no
    JSON, and the next such place is tried.
    """
    text, decoder = memoryview(raw), msgspec.json.Decoder(list[Annotation])
    first = 0  # annotations in the parts before
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
                raise _misfit(path, "annotations", error, first) from None
            except msgspec.DecodeError:
                if cut is None:
                    raise
                search = begin + 2 * (cut.end() - begin)  # doubled, as each try decodes the part again
        yield found
        first += len(found)
        begin = len(text) if cut is None else cut.end()


def _decode(path: str, keys: Mapping[str, msgspec.Raw], key: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(keys[key], type=kind)
    except msgspec.ValidationError as error:
        raise _misfit(path, key, error, 0) from None


def _misfit(path: str, key: str, error: msgspec.ValidationError, first: int) -> InputError:
    """The error of an entry of another form than expected, `first` entries into the list."""
    reason, _, place = str(error).partition(" - at `$")
    place = re.sub(r"^\[(\d+)\]", lambda match: f"[{int(match[1]) + first}]", place.rstrip("`"))
    return format_error(f"{path}: {key}{place}", reason.replace(" | str", ""))


def _numbers(path: str, index: int, annotation: Annotation) -> list[float]:
    for value in annotation.bbox:
        if isinstance(value, str) and not value.startswith("\0"):
            raise format_error(f"{path}: annotations[{index}]", f"bbox: expected four numbers, found {value!r}")
    return [float(value[1:]) if isinstance(value, str) else value for value in annotation.bbox]


def _labels(path: str, category: Column, names: dict[int, str]) -> Column:
    """Category names, or their numbers where the file names none."""
    if not names:
        return category
    used, which = np.unique(category, return_inverse=True)
    unknown = [int(number) for number in used if int(number) not in names]
    if unknown:
        raise format_error(f"{path}: annotations", f"expected a category_id listed in categories, found {unknown[0]}")
    return column([names[int(number)] for number in used])[which]
