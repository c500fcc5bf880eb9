"""Read COCO results, the output of detectors: [{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, ...].

Image ids become names by means of --images-json (a COCO file with `images`, and `categories` for the labels), or of file
names: 785 is 000000000785.jpg, 785.jpg, or any name whose stem ends with _000000000785. Segmentations and keypoints are read as
those of annotations, if the settings ask for regions.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.boxes.common import (
    Grouping,
    Source,
    as_column,
    box_columns,
    format_error,
    index_unique,
    note_missing,
)
from roialign_cli.inputs.boxes.formats.coco import Category, Image
from roialign_cli.inputs.boxes.formats.coco_shapes import TYPES, box_numbers, pack_shapes
from roialign_cli.inputs.boxes.json_objects import check_keys
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.system.safe_read import require_regular_file
from roialign_cli.types import BoxTable

ID_DIGITS = 12  # of the ids in COCO's file names


class Result(msgspec.Struct, gc=False):
    """One detection."""

    image_id: int | str
    bbox: tuple[float, float, float, float]
    category_id: int | str | None = None
    score: float | None = None


class ImageInfo(msgspec.Struct):
    """The parts of --images-json that are read."""

    images: list[Image]
    categories: list[Category] = []


def read(source: Source) -> BoxTable:
    """Return the detections grouped by image, each image's in the order of the file. Raises InputError."""
    path = source.path
    try:
        kind: Any = Result if source.region == "box" else TYPES[source.region]
        results = msgspec.json.decode(source.read(), type=list[kind])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise format_error(path, f"expected a list of COCO results, found: {error}") from None
    if not results:
        raise format_error(path, "expected a list of COCO results, found an empty one")
    images_json = source.settings.images_json
    info = _read_info(Path(images_json)) if images_json else None
    names = {image.id: image.file_name for image in info.images} if info else names_by_id(source.images)
    missing = [i for i, result in enumerate(results) if result.image_id not in names]
    if missing:
        found = f"found image_id {results[missing[0]].image_id!r}"
        if info is not None:
            raise format_error(f"{path}: [{missing[0]}]", f"expected the id of an image in {images_json}, {found}")
        for i in missing:
            names[results[i].image_id] = coco_name(results[i].image_id)

    def where(i: int) -> str:
        return f'{path}: [{i}] of "{names[results[i].image_id]}"'

    units = source.units("xywh")
    labels = [result.category_id for result in results if result.category_id is not None]
    if info and info.categories:
        known = {category.id: category.name for category in info.categories}
        labels = [known.get(label, label) if isinstance(label, int) else label for label in labels]
    scores = [result.score for result in results if result.score is not None]
    images, owner = index_unique(PackedNames.from_strings(names[result.image_id] for result in results))
    return Grouping.by_image(owner, len(images)).table(
        images,
        **box_columns(box_numbers(results, units, where), units),
        shapes=None if source.region == "box" else pack_shapes(results, source.region, where),
        labels=as_column(labels) if len(labels) == len(results) else None,
        scores=np.array(scores) if len(scores) == len(results) else None,
        notes=(*note_missing("labels", len(labels), len(results)), *note_missing("scores", len(scores), len(results))),
    )


def _read_info(path: Path) -> ImageInfo:
    try:
        text = require_regular_file(path).read_bytes()
        info = msgspec.json.decode(text, type=ImageInfo)
    except OSError as error:
        raise format_error(path, f"expected a COCO file with images, found: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise format_error(path, f"expected a COCO file with images, found: {error}") from None
    check_keys(path, text, msgspec.json.decode(text, type=dict[str, msgspec.Raw]))
    if len({image.id for image in info.images}) < len(info.images):
        raise format_error(f"{path}: images", "expected every id once, found one twice")
    return info


def names_by_id(images: ImageNames) -> dict[int | str, str]:
    """Return the names of images by the number that their stem is or ends with, and by the stem itself."""
    found: dict[int | str, str] = {}
    for name in sorted(images.all, reverse=True):
        stem = PurePosixPath(name).stem
        found[stem] = name
        number = stem.rpartition("_")[2]
        if number.isascii() and number.isdecimal() and (number == stem or len(number) == ID_DIGITS):
            found[int(number)] = name
    return found


def coco_name(image_id: int | str) -> str:
    """Return the name that a missing image has in COCO."""
    return f"{image_id:0{ID_DIGITS}}.jpg" if isinstance(image_id, int) else image_id
