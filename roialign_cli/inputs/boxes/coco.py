"""COCO instances: images, annotations with bbox [x, y, width, height], categories (cocodataset.org, object detection)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from roialign_cli.inputs.boxes.common import Column, as_boxes, bad, column, offsets
from roialign_cli.structures import BoxTable, Floats

Number = float | str  # a string only where NaN or Infinity stood, marked by a leading NUL


class Image(msgspec.Struct):
    """One entry of `images`."""

    id: int | str
    file_name: str


class Annotation(msgspec.Struct):
    """One entry of `annotations`; segmentations and the like are skipped, not decoded."""

    image_id: int | str
    bbox: tuple[Number, Number, Number, Number]
    category_id: int | None = None
    id: int | str | None = None
    score: float | None = None


class Category(msgspec.Struct):
    """One entry of `categories`."""

    id: int
    name: str


def read(path: str, keys: Mapping[str, msgspec.Raw]) -> BoxTable:
    """Boxes image by image in the order of `images`; labels are category names where the file has them."""
    for key in ("images", "annotations"):
        if key not in keys:
            raise bad(path, f"expected COCO instances with {key!r}, found only {', '.join(list(keys)[:5])}")
    images: list[Image] = _decode(path, keys, "images", list[Image])
    annotations: list[Annotation] = _decode(path, keys, "annotations", list[Annotation])
    categories: list[Category] = _decode(path, keys, "categories", list[Category]) if "categories" in keys else []

    place = {image.id: i for i, image in enumerate(images)}
    if len(place) < len(images) or len({image.file_name for image in images}) < len(images):
        raise bad(f"{path}: images", "expected every id and file_name once, found one twice")
    for i, annotation in enumerate(annotations):
        if annotation.image_id not in place:
            raise bad(
                f"{path}: annotations[{i}]", f"expected the id of an image, found image_id {annotation.image_id!r}"
            )
    owner = np.array([place[annotation.image_id] for annotation in annotations], np.int64)
    order = np.argsort(owner, kind="stable")
    ordered = [annotations[i] for i in order]
    xywh = [_numbers(path, int(i), annotations[i]) for i in order]
    return BoxTable(
        names=tuple(image.file_name for image in images),
        offset=offsets(np.bincount(owner, minlength=len(images)).tolist()),
        boxes=as_boxes([(x, y, x + width, y + height) for x, y, width, height in xywh]),
        labels=_labels(path, ordered, {category.id: category.name for category in categories}),
        scores=_scores(ordered),
        ids=column([a.id for a in ordered if a.id is not None]) if all(a.id is not None for a in ordered) else None,
    )


def _decode(path: str, keys: Mapping[str, msgspec.Raw], key: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(keys[key], type=kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        raise bad(f"{path}: {key}{place.rstrip('`')}", reason.replace(" | str", "")) from None


def _numbers(path: str, index: int, annotation: Annotation) -> list[float]:
    for value in annotation.bbox:
        if isinstance(value, str) and not value.startswith("\0"):
            raise bad(f"{path}: annotations[{index}]", f"bbox: expected four numbers, found {value!r}")
    return [float(value[1:]) if isinstance(value, str) else value for value in annotation.bbox]


def _labels(path: str, ordered: list[Annotation], names: dict[int, str]) -> Column | None:
    if any(annotation.category_id is None for annotation in ordered):
        return None
    ids = [annotation.category_id for annotation in ordered if annotation.category_id is not None]
    unknown = [number for number in ids if number not in names]
    if names and unknown:
        raise bad(f"{path}: annotations", f"expected a category_id listed in categories, found {unknown[0]}")
    return column([names[number] for number in ids] if names else ids)


def _scores(ordered: list[Annotation]) -> Floats | None:
    if not ordered or any(annotation.score is None for annotation in ordered):
        return None
    return np.array([annotation.score for annotation in ordered], np.float32)
