"""Check the structure of a feature file when it is opened: attributes, types, shapes, offsets and names.

Code that reads a file afterwards relies on these checks, no matter what made the file. See docs/reference/format.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import PackedNames, is_text, unsafe_name
from roialign_cli.errors import OutputError
from roialign_cli.store.checksum import TABLES
from roialign_cli.store.schema import (
    BOX_VERSION,
    LINKED,
    REGION_TABLES,
    REGION_VERSION,
    DatasetExtent,
    features_path,
)

IMAGES, OFFSETS, BOXES = "number of images", "number of images + 1", "number of boxes"
STRING = "fixed-length string"
NAMES_PER_BLOCK = 1 << 16  # names that are checked at a time
MAX_LEVELS = 256  # that uint8 can count
SHARD_NUMBERS = ("shard", "shards", "plan_images", "plan_boxes")


@dataclass(frozen=True)
class Expected:
    """Describe a dataset: its allowed types, what its number of rows is, and the shape of a row; None if shapes vary."""

    types: tuple[str, ...]
    rows: str
    row: tuple[int, ...] | None = ()
    required: bool = True


DATASETS: Mapping[str, Expected] = {
    "images/name": Expected((STRING,), IMAGES),
    "images/offset": Expected(("int64",), OFFSETS),
    "images/size": Expected(("int64",), IMAGES, (2,)),
    "images/status": Expected(("uint8",), IMAGES),
    "images/error": Expected((STRING,), IMAGES),
    "images/crc32": Expected(("uint32",), IMAGES),
    TABLES: Expected(("uint32",), IMAGES, required=False),
    "images/file_size": Expected(("int64",), IMAGES, required=False),
    "images/modified": Expected(("int64",), IMAGES, required=False),
    "images/sha256": Expected(("uint8",), IMAGES, (32,), required=False),
    "boxes": Expected(("float32",), BOXES, (4,)),
    "labels": Expected(("int64", STRING), BOXES, required=False),
    "scores": Expected(("float32",), BOXES, required=False),
    "ids": Expected(("int64", STRING), BOXES, required=False),
    "levels": Expected(("uint8",), BOXES, required=False),
    "rotated": Expected(("float32",), BOXES, (5,), required=False),
    "points": Expected(("float32",), BOXES, None, required=False),
    "coverage": Expected(("float32",), BOXES, None, required=False),
    "area": Expected(("float32",), BOXES, required=False),
}


# Attributes that state what made a file; `verify` reports missing ones.
TEXTS = (
    "created_by", "created", "config", "backbone", "weights", "weights_sha256", "boxes_sha256", "table_sha256", "layers",
    "strides", "preprocessing", "versions",
)  # fmt: skip


def check_attributes(path: Path, attributes: Mapping[str, Any], present: Set[str], *, linked: bool) -> list[str]:
    """Return the names of the layers. Raises OutputError if an attribute that readers use is not of the required form.

    `present` are the names of all attributes in the file; `attributes` are those that are text or numbers.
    """
    for name in (*TEXTS, "plan_sha256"):
        value = attributes.get(name)
        if name in present and not (isinstance(value, str) and is_text(value)):
            raise _bad(path, f"attribute {name}", "text", repr(value))
    config = _json(path, attributes, "config")
    if not isinstance(config, dict):
        raise _bad(path, "attribute config", "an object", config)
    layers: list[str] = _json(path, attributes, "layers")
    named = isinstance(layers, list) and layers and all(isinstance(layer, str) and layer for layer in layers)
    if not named or len(set(layers)) < len(layers):
        raise _bad(path, "attribute layers", "a list of different names", layers)
    strides = _json(path, attributes, "strides") if "strides" in attributes else {layer: [1] for layer in layers}
    if not isinstance(strides, dict) or strides.keys() != set(layers) or not all(map(_are_strides, strides.values())):
        raise _bad(path, "attribute strides", "a list of numbers for each layer", strides)
    if present & {"shard", "shards"} and not linked:
        numbers = [attributes.get(name) for name in SHARD_NUMBERS]
        for name, value in zip(SHARD_NUMBERS, numbers, strict=True):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise _bad(path, f"attribute {name}", "a number", value)
        if not 1 <= attributes["shard"] <= attributes["shards"]:
            raise _bad(path, "attribute shard", f"a number from 1 to {attributes['shards']}", attributes["shard"])
        if "plan_sha256" not in attributes:
            raise _bad(path, "attribute plan_sha256", "text", "none")
    return layers


def check_links(path: Path, attributes: Mapping[str, Any], *, allowed: bool) -> list[Path]:
    """Return the files that a linked file names. Raises OutputError if one is outside of its folder and not `allowed`."""
    links = _json(path, attributes, LINKED)
    if not isinstance(links, list) or not links or not all(isinstance(link, str) and link for link in links):
        raise _bad(path, "attribute linked", "a list of paths", links)
    home, found = path.parent.resolve(), []
    for link in links:
        if "\0" in link or not is_text(link):
            raise _bad(path, "attribute linked", "a list of paths", links)
        target = path.parent / link
        if not allowed and (Path(link).is_absolute() or home not in target.resolve().parents):
            message = f"{path}: attribute linked: expected files in its own folder, found {link!r}"
            raise OutputError("file-links", message, "--allow-links lets it name others, if you trust it")
        found.append(target)
    if len({target.resolve() for target in found}) < len(found):
        raise _bad(path, f"attribute {LINKED}", "each file once", "one twice")
    return found


def check_datasets(
    path: Path, extents: Mapping[str, DatasetExtent], layers: list[str], attributes: Mapping[str, Any]
) -> None:
    """Raise OutputError if a dataset is missing, or not of the type and shape that the format requires."""
    counts = {IMAGES: _rows(path, extents, "images/name"), BOXES: _rows(path, extents, "boxes")}
    counts[OFFSETS] = counts[IMAGES] + 1
    for name, expected in DATASETS.items():
        if name not in extents:
            if expected.required:
                raise _bad(path, name, "a dataset", "none")
            continue
        place = extents[name]
        found = STRING if place.dtype.kind == "S" else str(place.dtype)  # big-endian is >f4
        if found not in expected.types:
            raise _bad(path, name, f"numbers of type {' or '.join(expected.types)}", found)
        shape = (counts[expected.rows], *(place.shape[1:] if expected.row is None else expected.row))
        if place.shape != shape:
            raise _bad(path, name, f"shape {list(shape)} ({expected.rows})", list(place.shape))
    if max_levels(attributes) > 1 and "levels" not in extents:
        raise _bad(path, "levels", "a dataset, as a layer is a pyramid", "none")
    for name, least in (("plan_images", counts[IMAGES]), ("plan_boxes", counts[BOXES])):
        if attributes.get(name, least) < least:
            raise _bad(path, f"attribute {name}", f"at least {least}", attributes[name])
    for layer in layers:
        name = features_path(layer, len(layers))
        if name not in extents:
            raise _bad(path, name, "a dataset", "none")
        place = extents[name]
        if str(place.dtype) not in ("float32", "float16"):
            raise _bad(path, name, "numbers of type float32 or float16", place.dtype)
        n = counts[BOXES]
        ranks, wanted = ((3,), f"[{n}, P, C]") if "points" in extents else ((2, 4), f"[{n}, C, PH, PW] or [{n}, C]")
        if len(place.shape) not in ranks or place.shape[0] != n or 0 in place.shape[1:]:
            raise _bad(path, name, f"shape {wanted}", list(place.shape))
    check_regions(path, extents, layers, attributes)


def check_regions(
    path: Path, extents: Mapping[str, DatasetExtent], layers: list[str], attributes: Mapping[str, Any]
) -> None:
    """Raise OutputError if the tables of regions that are not boxes do not fit the version, each other or the features."""
    present = [name for name in REGION_TABLES if name in extents]
    version = REGION_VERSION if present else BOX_VERSION
    if attributes["format_version"] != version:
        what = f"as there is a dataset {present[0]}" if present else f"as there is none of {', '.join(REGION_TABLES)}"
        raise _bad(path, "attribute format_version", f"{version}, {what}", attributes["format_version"])
    rows = [extents[features_path(layer, len(layers))].shape[1:] for layer in layers]
    if "points" in extents:
        found = extents["points"].shape
        for row in rows:
            if found[1:] != (row[0], 3):
                expected = f"shape {[found[0], row[0], 3]}, as features have {row[0]} points"
                raise _bad(path, "points", expected, list(found))
    if "coverage" in extents:
        found = extents["coverage"].shape
        if len(found) not in (1, 3) or 0 in found[1:] or found[1:] == (1, 1):
            raise _bad(path, "coverage", f"shape [{found[0]}, PH, PW], or [{found[0]}] of one bin", list(found))
        bins = found[1:] or (1, 1)
        for row in rows:
            if len(row) == 3 and row[1:] != bins:  # features that are reduced have no bins
                raise _bad(path, "coverage", f"bins {list(row[1:])}, as features have", list(bins))


def max_levels(attributes: Mapping[str, Any]) -> int:
    """Return the largest number of levels of a layer of a file; 0 if the file does not say."""
    return max(map(len, json.loads(attributes["strides"]).values())) if "strides" in attributes else 0


def check_rows(path: Path, names: npt.NDArray[np.bytes_], offset: npt.NDArray[np.int64], boxes: int) -> None:
    """Raise OutputError if offsets do not ascend from 0 to the number of boxes, or if a name leads out of a folder."""
    if offset[0] != 0 or offset[-1] != boxes or (offset[1:] < offset[:-1]).any():
        raise _bad(path, "images/offset", f"numbers that ascend from 0 to {boxes}", f"{offset[:5].tolist()}...")
    for first in range(0, len(names), NAMES_PER_BLOCK):
        some = names[first : first + NAMES_PER_BLOCK].tolist()
        if (unsafe := unsafe_name(PackedNames.from_bytes(some))) is not None:
            raise _bad(path, "images/name", "names of images relative to their folder, inside it", repr(unsafe))
    hashes = np.fromiter((hash(name) for name in names.tolist()), np.int64, len(names))
    if len(np.unique(hashes)) < len(names) and len(set(names.tolist())) < len(names):
        raise _bad(path, "images/name", "each name once", "one twice")


def _are_strides(found: object) -> bool:
    """Return whether a value is a list of positive strides."""
    return (
        isinstance(found, list)
        and 0 < len(found) <= MAX_LEVELS
        and all(isinstance(stride, int | float) and not isinstance(stride, bool) and stride > 0 for stride in found)
    )


def _rows(path: Path, extents: Mapping[str, DatasetExtent], name: str) -> int:
    if name not in extents or not extents[name].shape:
        raise _bad(path, name, "a dataset of rows", "none")
    return extents[name].shape[0]


def _json(path: Path, attributes: Mapping[str, Any], name: str) -> Any:
    try:
        return json.loads(attributes[name])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _bad(path, f"attribute {name}", "JSON", repr(attributes.get(name))[:80]) from None


def _bad(path: Path, where: str, expected: str, found: object) -> OutputError:
    return OutputError("file-structure", f"{path}: {where}: expected {expected}, found {str(found)[:100]}")
