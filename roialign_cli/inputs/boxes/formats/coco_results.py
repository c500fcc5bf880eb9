"""COCO results: [{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, ...], what detectors write.

Ids become image names by way of --images-json (a COCO file with `images`, and `categories` for the labels), or of file
names: 785 is 000000000785.jpg, 785.jpg, or any name that ends with _000000000785.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from roialign_cli.arrays import PackedNames
from roialign_cli.inputs.boxes.common import Grouping, Source, column, format_error, index_unique
from roialign_cli.inputs.boxes.formats.coco import Category, Image
from roialign_cli.inputs.boxes.json_objects import check_keys
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.system.safe_read import require_regular_file
from roialign_cli.types import BoxTable

DIGITS = 12  # of the ids in COCO's file names


class Result(msgspec.Struct, gc=False):
    """One detection."""

    image_id: int | str
    bbox: tuple[float, float, float, float]
    category_id: int | str | None = None
    score: float | None = None


class About(msgspec.Struct):
    """What is read of --images-json."""

    images: list[Image]
    categories: list[Category] = []


def read(source: Source) -> BoxTable:
    """Detections in the order of the file, image by image."""
    path = source.path
    try:
        results = msgspec.json.decode(path.read_bytes(), type=list[Result])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise format_error(path, f"expected a list of COCO results, found: {error}") from None
    if not results:
        raise format_error(path, "expected a list of COCO results, found an empty one")
    given = source.settings.images_json
    about = _about(Path(given)) if given else None
    names = {image.id: image.file_name for image in about.images} if about else _by_number(source.images)
    missing = [i for i, result in enumerate(results) if result.image_id not in names]
    if missing:
        found = f"found image_id {results[missing[0]].image_id!r}"
        if about is not None:
            raise format_error(f"{path}: [{missing[0]}]", f"expected the id of an image of {given}, {found}")
        for i in missing:
            names[results[i].image_id] = _name(results[i].image_id)
    xywh = np.array([result.bbox for result in results], np.float64).reshape(-1, 4)
    labels = [result.category_id for result in results if result.category_id is not None]
    if about and about.categories:
        known = {category.id: category.name for category in about.categories}
        labels = [known.get(label, label) if isinstance(label, int) else label for label in labels]
    scores = [result.score for result in results if result.score is not None]
    images, owner = index_unique(PackedNames.from_strings(names[result.image_id] for result in results))
    return Grouping.by(owner, len(images)).table(
        images,
        np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        labels=column(labels) if len(labels) == len(results) else None,
        scores=np.array(scores) if len(scores) == len(results) else None,
    )


def _about(path: Path) -> About:
    try:
        text = require_regular_file(path).read_bytes()
        about = msgspec.json.decode(text, type=About)
    except OSError as error:
        raise format_error(path, f"expected a COCO file with images, found: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise format_error(path, f"expected a COCO file with images, found: {error}") from None
    check_keys(path, text, msgspec.json.decode(text, type=dict[str, msgspec.Raw]))
    if len({image.id for image in about.images}) < len(about.images):
        raise format_error(f"{path}: images", "expected every id once, found one twice")
    return about


def _by_number(images: ImageNames) -> dict[int | str, str]:
    """Images by the number that their stem is or ends with, and by the stem itself."""
    found: dict[int | str, str] = {}
    for name in sorted(images.all, reverse=True):
        stem = PurePosixPath(name).stem
        found[stem] = name
        number = stem.rpartition("_")[2]
        if number.isascii() and number.isdecimal() and (number == stem or len(number) == DIGITS):
            found[int(number)] = name
    return found


def _name(image_id: int | str) -> str:
    """What an image that is not there would be called."""
    return f"{image_id:0{DIGITS}}.jpg" if isinstance(image_id, int) else image_id
