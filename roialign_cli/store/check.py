"""Check a feature file: structure, statuses, and the checksum of every image marked done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.store.checksum import ATTRIBUTES, TABLES, attributes_crc32, features_crc32, table_crc32
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE, FAILED, PENDING, STATUS_NAMES


@dataclass(frozen=True)
class Report:
    """What a check found; `problems` are defects of the file, failed images are not."""

    images: int
    rows: int
    done: int
    failed: int
    pending: int
    problems: list[str]


def check(file: FeatureFile) -> Report:
    """Read the whole file once."""
    status = file.status
    problems = _structure(file)
    if not problems:
        for i, name in enumerate(file.names):
            if status[i] == DONE and image_crc32(file, name) != file.dataset("images/crc32")[i]:
                problems.append(f'"{name}": marked done, but its features do not match its checksum')
            if status[i] != PENDING and not _table_is_right(file, i, int(status[i])):
                word = STATUS_NAMES[status[i]]
                problems.append(
                    f'"{name}": marked {word}, but its boxes or its line in /images do not match their checksum'
                )
    done, failed, pending = (int((status == value).sum()) for value in (DONE, FAILED, PENDING))
    rows = int(file.offset[-1]) if len(file.offset) else 0
    return Report(len(file.names), rows, done, failed, pending, problems)


def image_crc32(file: FeatureFile, name: str) -> int:
    """CRC-32 of an image's feature rows, layer after layer in the order of the attribute `layers`."""
    rows = file.rows(name)
    crc = 0
    for layer in file.layers:
        crc = features_crc32(file.features(layer)[rows], crc)
    return crc


def _table_is_right(file: FeatureFile, image: int, status: int) -> bool:
    if TABLES not in file.places:
        return True

    def read(name: str, first: int, count: int) -> npt.NDArray[Any]:
        return (file.offset if name == "images/offset" else file.dataset(name))[first : first + count]

    return table_crc32(read, file.places, image, status) == int(file.dataset(TABLES)[image])


@dataclass(frozen=True)
class Values:
    """Of the features of one layer: over how many rows, least, greatest, mean, share of zeros, and how many not finite."""

    rows: int
    least: float
    greatest: float
    mean: float
    zeros: float
    not_finite: int


def values(file: FeatureFile, layer: str, most: int = 1000) -> Values | None:
    """Of rows of images that are done, evenly spread and at most so many; None without any."""
    done = file.done_rows
    chosen = (
        done[np.unique(np.linspace(0, len(done) - 1, min(most, len(done))).astype(np.int64))] if len(done) else done
    )
    sample = np.array(file.features(layer)[chosen], np.float32)
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return None
    mean, zeros = float(finite.mean(dtype=np.float64)), float((finite == 0).mean())
    return Values(len(chosen), float(finite.min()), float(finite.max()), mean, zeros, sample.size - finite.size)


def _structure(file: FeatureFile) -> list[str]:
    images, problems = len(file.names), []
    for part in file.parts:
        if part.attributes.get(ATTRIBUTES, (found := attributes_crc32(part.attributes))) != found:
            problems.append(f"{part.path.name}: its attributes do not match their checksum")
    offset = file.offset
    if len(offset) != images + 1 or offset[0] != 0 or (np.diff(offset) < 0).any():
        problems.append("images/offset: expected M + 1 ascending numbers from 0")
    rows = int(offset[-1])
    for name in ("images/size", "images/status", "images/error", "images/crc32"):
        if len(file.dataset(name)) != images:
            problems.append(f"{name}: expected {images} rows, found {len(file.dataset(name))}")
    for layer in file.layers:
        if len(file.features(layer)) != rows:
            problems.append(f"features of {layer}: expected {rows} rows, found {len(file.features(layer))}")
    if len(file.dataset("boxes")) != rows:
        problems.append(f"boxes: expected {rows} rows, found {len(file.dataset('boxes'))}")
    strange = np.flatnonzero(file.status > FAILED)
    if strange.size:
        problems.append(f'"{file.names[strange[0]]}": status {file.status[strange[0]]} has no meaning')
    if len(set(file.names)) != images:
        problems.append("images/name: a name stands twice")
    return problems
