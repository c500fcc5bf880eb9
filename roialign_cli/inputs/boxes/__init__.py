"""Box files: one reader in front of one small module per format. All give the one convention: x1, y1, x2, y2 in pixels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError, InputError
from roialign_cli.inputs.boxes import coco, coco_results, columns, grid, jsonl, labelme, native, npz, parquet, voc, yolo
from roialign_cli.inputs.boxes.common import Source, bad
from roialign_cli.inputs.boxes.keys import check_keys, twice
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.inputs.boxes.select import select
from roialign_cli.reading import regular
from roialign_cli.structures import BoxTable, Floats, unsafe_name

READERS: dict[str, Callable[[Source], BoxTable]] = {
    "native": lambda source: native.read(str(source.path), top_level(source.path)),
    "jsonl": jsonl.read,
    "coco": lambda source: coco.read(str(source.path), top_level(source.path)),
    "coco-results": coco_results.read,
    "voc": voc.read,
    "yolo": yolo.read,
    "labelme": labelme.read,
    "csv": columns.read_csv,
    "parquet": parquet.read,
    "npz": npz.read,
}
SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".xml": "voc",
    ".npz": "npz", ".txt": "yolo",
}  # fmt: skip
ROWS_AT_ONCE = 1 << 20  # boxes checked at a time
PIECE_BYTES = 1 << 22  # of a file, digested at a time
IN_FOLDERS = {".xml": "voc", ".json": "labelme", ".npz": "npz", ".txt": "yolo"}


def read_boxes(path: Path | None, folder: Path | None = None, settings: Settings | None = None) -> BoxTable:
    """Read, select and validate the boxes of a file, or of a folder of annotations; of `grid`, without any.

    `folder` has the images, whose names some formats only hint at. Raises InputError naming file, image, index and value.
    """
    settings = settings or Settings()
    images = ImageNames(folder)
    if settings.grid:
        if path is not None:
            raise ConfigError("config-value", f"grid: expected no box file beside it, found {path}")
        return select("grid", grid.make(settings.grid, images), settings)
    if path is None:
        raise ConfigError("config-value", "expected a box file, found none", "or --whole-image, or --grid 3x3")
    source = Source(path, images, settings)
    with _explained(path):
        if not path.is_dir():
            regular(path)
        found = settings.boxes_format if settings.boxes_format != "auto" else recognise(path)
        table = READERS[found](source)
        digest = _digest(path, settings)
    if (name := unsafe_name(table.names)) is not None:
        expected = "expected the name of an image relative to the image folder, inside it"
        raise InputError("image-name", f"{path}: {name!r}: {expected}")
    _check_text(str(path), table)
    _check_values(str(path), table, found)
    return replace(select(str(path), table, settings), sha256=digest)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what may go wrong with a file of any format into an InputError: it cannot be read, or holds what none may hold."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise bad(path, f"expected text in UTF-8, found: {error.reason} at byte {error.start}") from None
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can say and no text has
        part = error.object[max(error.start - 20, 0) : error.start + 20]
        raise bad(path, f"expected names and labels of Unicode text, found {part!r}") from None
    except RecursionError:
        raise bad(path, "expected plain lists and objects, found them nested too deep") from None
    except msgspec.DecodeError as error:
        raise bad(path, f"expected JSON, found: {error}") from None
    except OSError as error:
        where = str(path if error.filename is None else error.filename)
        expected = "expected a box file" if where == str(path) else "expected a file"
        raise InputError("boxes-missing", f"{where}: {expected}, found: {error.strerror or error}") from None


def recognise(path: Path) -> str:
    """The name of the format of a file or folder, by its suffix or content."""
    if path.is_dir():
        counts = Counter(file.suffix.lower() for file in path.rglob("*") if file.suffix.lower() in IN_FOLDERS)
        if not counts:
            expected = "expected a folder of VOC .xml, YOLO .txt, LabelMe .json or .npz files"
            raise bad(path, f"{expected}, found none of them")
        return IN_FOLDERS[counts.most_common(1)[0][0]]
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"[":
        return "coco-results"
    if start[:1] == b"<":
        return "voc"
    keys = top_level(path)
    if "annotations" in keys and "images" in keys:
        return "coco"
    return "labelme" if "shapes" in keys else "native"


def _digest(path: Path, settings: Settings) -> str:
    """Of all that was read, and how: a run goes on only with the same boxes."""
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IN_FOLDERS) if path.is_dir() else [path]
    for file in filter(Path.is_file, files):
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode("utf-8", "surrogateescape") + b"\0")
        with file.open("rb") as opened:
            while piece := opened.read(PIECE_BYTES):
                digest.update(piece)
    for extra in (settings.classes, settings.images_json):
        if extra:
            digest.update(regular(Path(extra)).read_bytes())
    if settings.columns or settings.voc_origin != Settings.voc_origin:
        digest.update(f"{settings.columns} {settings.voc_origin}".encode())
    return digest.hexdigest()


def top_level(path: Path) -> dict[str, Any]:
    """The values of the outermost JSON object, not yet decoded."""
    content = path.read_bytes()
    try:
        values = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise bad(path, "expected a JSON object: image names with boxes, or COCO instances") from None
    except msgspec.DecodeError as error:
        return _with_nan(path, content, str(error))
    check_keys(path, content, values)
    return values


def _with_nan(path: Path, content: bytes, reason: str) -> dict[str, Any]:
    """Python writes NaN and Infinity into JSON, which JSON forbids: let them in, so that the bad box can be named."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise twice(path, next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])))
        return found

    try:
        parsed = json.loads(content, parse_constant=lambda name: f"\0{name}", object_pairs_hook=once)
    except (ValueError, RecursionError):
        hint = "--boxes-format says which format it is; see the box formats in the docs"
        raise bad(path, f"expected JSON, found: {reason}", hint) from None
    if not isinstance(parsed, dict):
        raise bad(path, "expected a JSON object: image names with boxes, or COCO instances")
    return {name: msgspec.Raw(json.dumps(value, ensure_ascii=False).encode()) for name, value in parsed.items()}


def _check_text(path: str, table: BoxTable) -> None:
    """Labels and ids are stored as UTF-8, in which half of a surrogate pair has no form."""
    for what, column in (("labels", table.labels), ("ids", table.ids)):
        if column is None or column.dtype.kind != "U":
            continue
        letters = column.view(np.uint32).reshape(len(column), -1)
        for begin in range(0, len(column), ROWS_AT_ONCE):
            some = letters[begin : begin + ROWS_AT_ONCE]
            wrong = ((some >= 0xD800) & (some < 0xE000)).any(axis=1)
            if wrong.any():
                row = begin + int(wrong.argmax())
                raise bad(_place(path, table, row), f"{what}: expected Unicode text, found {str(column[row])!r}")


def _check_values(path: str, table: BoxTable, boxes_format: str) -> None:
    if table.scores is not None and not np.isfinite(table.scores).all():
        row = int((~np.isfinite(table.scores)).argmax())
        raise InputError(
            "score-not-finite", f"{_place(path, table, row)}: expected a finite score, found {table.scores[row]}"
        )
    boxes = table.boxes
    for begin in range(0, len(boxes), ROWS_AT_ONCE):
        some = boxes[begin : begin + ROWS_AT_ONCE]
        wrong = ~np.isfinite(some).all(axis=1) | (some[:, 2] < some[:, 0]) | (some[:, 3] < some[:, 1])
        if wrong.any():
            raise _wrong_box(_place(path, table, begin + int(wrong.argmax())), some[wrong.argmax()], boxes_format)


def _wrong_box(where: str, box: Floats, boxes_format: str) -> InputError:
    x1, y1, x2, y2 = (float(f"{value:.7g}") for value in box)
    if not np.isfinite(box).all():
        return InputError("box-not-finite", f"{where}: expected four finite numbers, found [{x1}, {y1}, {x2}, {y2}]")
    axis, low, high = ("x", x1, x2) if x2 < x1 else ("y", y1, y2)
    if boxes_format.startswith("coco"):
        side = "width" if axis == "x" else "height"
        return InputError("box-outside-format", f"{where}: {side} must not be negative, got {side}={high - low:.7g}")
    return InputError(
        "box-outside-format",
        f"{where}: {axis}2 must be greater than {axis}1, got {axis}1={low}, {axis}2={high}",
        "these look like x, y, width, height; pass --boxes-format coco or convert them",
    )


def _place(path: str, table: BoxTable, row: int) -> str:
    """Where a row of the table stands in the file."""
    image = int(np.searchsorted(table.offset, row, side="right")) - 1
    return f'{path}: "{table.names[image]}", box {row - int(table.offset[image])}'
