"""Box files: one reader in front of one small module per format. All give the one convention: x1, y1, x2, y2 in pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from roialign_cli.config import BoxesFormat
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes import coco, native
from roialign_cli.inputs.boxes.common import bad
from roialign_cli.structures import BoxTable

Reader = Callable[[str, Mapping[str, msgspec.Raw]], BoxTable]
READERS: dict[str, Reader] = {"native": native.read, "coco": coco.read}


def read_boxes(path: Path, boxes_format: BoxesFormat = "auto") -> BoxTable:
    """Read and validate a box file.

    Raises InputError naming file, image, index and value.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = (
            "a box file is JSON, native or COCO instances; folders of annotations are not read yet"
            if path.is_dir()
            else ""
        )
        raise InputError("boxes-missing", f"{path}: expected a box file, found: {error.strerror}", hint) from None
    keys = _top_level(path, content)
    found = "coco" if "annotations" in keys and "images" in keys else "native"
    table = READERS[found if boxes_format == "auto" else boxes_format](str(path), keys)
    _check_names(str(path), table)
    _check_values(str(path), table, found if boxes_format == "auto" else boxes_format)
    return replace(table, sha256=hashlib.sha256(content).hexdigest())


def _top_level(path: Path, content: bytes) -> dict[str, Any]:
    """The values of the outermost JSON object, not yet decoded."""
    try:
        return msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        hint = (
            "a list at the outermost level may be COCO results, which are not read yet" if content[:1] == b"[" else ""
        )
        raise bad(path, "expected a JSON object: image names with boxes, or COCO instances", hint) from None
    except msgspec.DecodeError as error:
        return _with_nan(path, content, str(error))


def _with_nan(path: Path, content: bytes, reason: str) -> dict[str, Any]:
    """Python writes NaN and Infinity into JSON, which JSON forbids: let them in, so that the bad box can be named."""
    try:
        parsed = json.loads(content, parse_constant=lambda name: f"\0{name}")
    except (ValueError, RecursionError):
        raise bad(
            path,
            f"expected JSON, found: {reason}",
            "a box file is JSON, native or COCO instances; other formats are not read yet",
        ) from None
    if not isinstance(parsed, dict):
        raise bad(path, "expected a JSON object: image names with boxes, or COCO instances")
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in parsed.items()}


def _check_names(path: str, table: BoxTable) -> None:
    for name in table.names:
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name or "\\" in name:
            raise InputError(
                "image-name", f"{path}: {name!r}: expected the name of an image relative to the image folder, inside it"
            )


def _check_values(path: str, table: BoxTable, boxes_format: str) -> None:
    boxes = table.boxes
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    if not wrong.any():
        return
    row = int(wrong.argmax())
    image = int(np.searchsorted(table.offset, row, side="right")) - 1
    where = f'{path}: "{table.names[image]}", box {row - int(table.offset[image])}'
    x1, y1, x2, y2 = (float(f"{value:.7g}") for value in boxes[row])
    if not np.isfinite(boxes[row]).all():
        raise InputError("box-not-finite", f"{where}: expected four finite numbers, found [{x1}, {y1}, {x2}, {y2}]")
    axis, low, high = ("x", x1, x2) if x2 < x1 else ("y", y1, y2)
    if boxes_format == "coco":
        side = "width" if axis == "x" else "height"
        raise InputError("box-outside-format", f"{where}: {side} must not be negative, got {side}={high - low:.7g}")
    raise InputError(
        "box-outside-format",
        f"{where}: {axis}2 must be greater than {axis}1, got {axis}1={low}, {axis}2={high}",
        "these look like x, y, width, height; pass --boxes-format coco or convert them",
    )
