"""Check a feature file: statuses, values of the tables, and the checksums of every image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.store.checksum import ATTRIBUTES, TABLES, attributes_crc32, features_crc32, table_crc32
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE, FAILED, PENDING, REGION_TABLES, STATUS_NAMES
from roialign_cli.store.structure import TEXTS, max_levels

ROWS_PER_BLOCK = 1 << 16  # of large tables that are checked at a time
REGION_LIMITS = {  # what `_wrong_regions` expects
    "rotated": "finite numbers, width and height at least 0",
    "points": "finite numbers",
    "coverage": "shares from 0 to 1",
    "area": "a finite number, at least 0",
}


@dataclass(frozen=True)
class CheckReport:
    """Hold the result of a check; `problems` are defects of the file, which failed images are not."""

    images: int
    rows: int
    done: int
    failed: int
    pending: int
    problems: list[str]


def check(file: FeatureFile) -> CheckReport:
    """Check everything in a file, which is read once; its structure was checked when it was opened."""
    status = file.status
    problems = [*_checksums(file), *_values(file, status)]
    if not problems:
        for i, name in enumerate(file.names):
            if status[i] == DONE and not features_match(file, i):
                problems.append(f'"{name}": marked done, but its features do not match its checksum')
            if status[i] != PENDING and not tables_match(file, i, int(status[i])):
                word = STATUS_NAMES[status[i]]
                problems.append(
                    f'"{name}": marked {word}, but its boxes or its line in /images do not match their checksum'
                )
    done, failed, pending = (int((status == value).sum()) for value in (DONE, FAILED, PENDING))
    return CheckReport(len(file.names), int(file.offset[-1]), done, failed, pending, problems)


def image_crc32(file: FeatureFile, image: int) -> int:
    """Return the CRC-32 of an image's feature rows, layer after layer in the order of the attribute `layers`."""
    rows = file.rows_of(image)
    crc = 0
    for layer in file.layers:
        crc = features_crc32(file.features(layer)[rows], crc)
    return crc


def features_match(file: FeatureFile, image: int) -> bool:
    """Return whether the feature rows of an image that is done match their checksum."""
    return image_crc32(file, image) == int(file.dataset("images/crc32")[image])


def tables_match(file: FeatureFile, image: int, status: int) -> bool:
    """Return whether everything except features that is stored about a done or failed image matches its checksum."""
    if TABLES not in file.extents:
        return True

    def read(name: str, first: int, count: int) -> npt.NDArray[Any]:
        return (file.offset if name == "images/offset" else file.dataset(name))[first : first + count]

    return table_crc32(read, file.extents, image, status) == int(file.dataset(TABLES)[image])


def _checksums(file: FeatureFile) -> Iterator[str]:
    """Yield attributes that do not match their checksum, and attributes and checksums that are missing."""
    for part in file.parts:
        for name in TEXTS:
            if name not in part.attributes:
                yield f"{part.path.name}: attribute {name}: expected text, found none"
        expected = part.attributes.get(ATTRIBUTES)
        if expected is None:
            yield f"{part.path.name}: attribute {ATTRIBUTES}: expected a checksum of the attributes, found none"
        elif expected != attributes_crc32(part.attributes):
            yield f"{part.path.name}: its attributes do not match their checksum"
        if TABLES not in part.extents:
            yield f"{part.path.name}: {TABLES}: expected checksums of the tables, found none"


def _values(file: FeatureFile, status: npt.NDArray[np.uint8]) -> Iterator[str]:
    """Yield values of the tables that cannot be true, whatever their checksums say."""
    strange = np.flatnonzero(status > FAILED)
    if strange.size:
        yield f'images/status: "{file.names[strange[0]]}": expected 0, 1 or 2, found {status[strange[0]]}'
    recorded = np.isin(status, (DONE, FAILED))
    counts = np.diff(file.offset)
    sizes = np.array(file.sizes)
    least = np.where((status == DONE) & (counts > 0), 1, 0)[
        :, None
    ]  # the size of an image that could not be opened is 0
    wrong = np.flatnonzero(recorded & (sizes < least).any(axis=1))
    if wrong.size:
        yield f'images/size: "{file.names[wrong[0]]}": expected (height, width), found {sizes[wrong[0]].tolist()}'
    rows = np.repeat(status == DONE, counts)
    boxes = np.array(file.dataset("boxes"))
    bad = rows & (~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    yield from _first_row(file, "boxes", bad, "x1 <= x2 and y1 <= y2, all finite", boxes)
    if "scores" in file.extents:
        scores = np.array(file.dataset("scores"))
        yield from _first_row(file, "scores", rows & ~np.isfinite(scores), "a finite number", scores)
    if "levels" in file.extents:
        levels, most = np.array(file.dataset("levels")), max_levels(file.attributes) or 256
        yield from _first_row(file, "levels", rows & (levels >= most), f"less than {most}", levels)
    for name in REGION_TABLES:
        if name in file.extents:
            values = file.dataset(name)
            yield from _first_row(file, name, rows & _wrong_regions(name, values), REGION_LIMITS[name], values)


def _wrong_regions(name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows of a table of regions cannot be true."""
    wrong = np.zeros(len(values), np.bool_)
    for first in range(0, len(values), ROWS_PER_BLOCK):
        block = values[first : first + ROWS_PER_BLOCK]
        numbers = block.reshape(len(block), -1)
        limited = {"points": numbers[:, :0], "rotated": numbers[:, 2:4]}.get(name, numbers)
        most = 1.0 if name == "coverage" else np.inf
        good = np.isfinite(numbers).all(axis=1) & (limited >= 0).all(axis=1) & (limited <= most).all(axis=1)
        wrong[first : first + len(block)] = ~good
    return wrong


def _first_row(
    file: FeatureFile, name: str, wrong: npt.NDArray[np.bool_], expected: str, values: npt.NDArray[Any]
) -> Iterator[str]:
    if wrong.any():
        row = int(wrong.argmax())
        image = int(np.searchsorted(file.offset, row, side="right")) - 1
        found = str(values[row].tolist())[:100]
        yield f'{name}: "{file.names[image]}", row {row}: expected {expected}, found {found}'
