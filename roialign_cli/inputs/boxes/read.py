"""Read box files: one function in front of one module per format. All return the same convention: x1, y1, x2, y2 in pixels."""

from __future__ import annotations

import gzip
import hashlib
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec

from roialign_cli.arrays import unsafe_name
from roialign_cli.config import WHOLE_IMAGE, Settings
from roialign_cli.errors import ConfigError, InputError, quoted
from roialign_cli.inputs.boxes import grid
from roialign_cli.inputs.boxes.columns import positional_columns
from roialign_cli.inputs.boxes.common import GZIP, MAX_EXPANDED_BYTES, Source, format_error
from roialign_cli.inputs.boxes.formats import (
    butd,
    coco,
    coco_results,
    csv,
    cvat,
    detections,
    dota,
    jsonl,
    label_map,
    label_studio,
    labelme,
    native,
    npz,
    parquet,
    text,
    voc,
    yolo,
)
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.inputs.boxes.recognise import FOLDER_SUFFIXES, recognise
from roialign_cli.inputs.boxes.regions import REGION_WORDS
from roialign_cli.inputs.boxes.select import keep_images, select
from roialign_cli.inputs.boxes.validate import check_shapes, check_text, check_values
from roialign_cli.inputs.images import ImageSet, open_images
from roialign_cli.system.safe_read import require_regular_file
from roialign_cli.types import BoxTable

READERS: dict[str, Callable[[Source], BoxTable]] = {
    "native": native.read,
    "jsonl": jsonl.read,
    "coco": coco.read,
    "coco-results": coco_results.read,
    "voc": voc.read,
    "yolo": yolo.read,
    "detections": detections.read,
    "dota": dota.read,
    "text": lambda source: text.read(source, positional_columns(source) or []),
    "labelme": labelme.read,
    "label-studio": label_studio.read,
    "label-map": label_map.read,
    "cvat": cvat.read,
    "csv": csv.read,
    "parquet": parquet.read,
    "npz": npz.read,
    "butd": butd.read,
}
REGION_FORMATS = {  # formats that have regions of a kind
    "rotated": (
        "dota",
        "yolo",
        "labelme",
        "coco",
        "coco-results",
        "cvat",
        "label-studio",
        "csv",
        "parquet",
        "text",
        "native",
        "jsonl",
    ),
    "mask": ("coco", "coco-results", "labelme", "cvat", "yolo", "label-map", "label-studio", "native", "jsonl"),
    "points": ("coco", "coco-results", "labelme", "cvat", "label-studio", "csv", "parquet", "text", "native", "jsonl"),
}
DIGEST_BLOCK_BYTES = 1 << 22
MAX_EXPANSION = 100  # of a compressed file; JSON with boxes expands about 10 times
MAX_PIPE_BYTES = 1 << 32
STDIN = "-"


def read_boxes(path: Path | None, images: ImageSet | Path | None = None, settings: Settings | None = None) -> BoxTable:
    """Read, validate and select the boxes of a file or a folder of annotations, or of the setting `grid` without a file.

    `images` are those against which names in the box file are resolved. Raises InputError naming file, image, index
    and value, or ConfigError if the settings do not fit together.
    """
    settings = settings or Settings()
    names = ImageNames(None if images is None else open_images(images))
    if settings.grid:
        if path is not None:
            option = "--whole-image" if settings.grid == WHOLE_IMAGE else f"--grid {settings.grid}"
            hint = f"leave out {path}, or {option}"
            raise ConfigError("config-value", f"{option}: expected no box file beside it, found {path}", hint)
        if settings.region != "box":
            raise ConfigError("config-value", f"region: expected box without a box file, found {settings.region!r}")
        return select("grid", grid.make(settings.grid, names), settings)
    if path is None:
        raise ConfigError(
            "config-value", "expected a box file, found none", "name one, or use --whole-image or --grid 3x3"
        )
    if settings.boxes_format == "text" and positional_columns(Source(path, names, settings)) is None:
        message = "boxes_format: expected --columns beside text, found none"
        raise ConfigError("config-value", message, '--columns "label score x1 y1 x2 y2"')
    with _input_errors(path):
        source = _open_source(path, names, settings)
        boxes_format = settings.boxes_format if settings.boxes_format != "auto" else recognise(source)
        _check_region(source, boxes_format)
        table = READERS[boxes_format](source)
        digest = _digest_sources(source, boxes_format)
    where = str(source.path)
    if (name := unsafe_name(table.names)) is not None:
        expected = "expected the name of an image inside the image folder, relative to it"
        raise InputError("image-name", f"{where}: {quoted(name)}: {expected}")
    check_text(where, table)
    check_values(where, table)
    check_shapes(where, table)
    matched, note = names.match(table.names)
    table = replace(
        table, names=matched, source=where, sha256=digest, notes=(*table.notes, note) if note else table.notes
    )
    return select(where, _leave_out_others(table, names), settings)


def _check_region(source: Source, boxes_format: str) -> None:
    """Raise InputError if a format has no regions of the kind that is asked for."""
    region = source.region
    if region != "box" and boxes_format not in REGION_FORMATS[region]:
        expected = f"expected a format with {REGION_WORDS[region]}, found {boxes_format}"
        raise InputError(
            "region-format", f"{source.path}: {expected}", f"these have: {', '.join(REGION_FORMATS[region])}"
        )


def _open_source(path: Path, names: ImageNames, settings: Settings) -> Source:
    """Return a box file; pipes, which can be read once, and compressed files are read now. Raises OSError, InputError."""
    if str(path) == STDIN:
        content = _read_limited(path, sys.stdin.buffer, MAX_PIPE_BYTES)
        return Source(Path("stdin"), names, settings, content)
    if path.is_dir():
        return Source(path, names, settings)
    if stat.S_ISFIFO(path.stat().st_mode):
        with path.open("rb") as pipe:
            return Source(path, names, settings, _read_limited(path, pipe, MAX_PIPE_BYTES))
    require_regular_file(path)
    if path.suffix.lower() != GZIP:
        return Source(path, names, settings)
    limit = max(MAX_EXPANDED_BYTES, MAX_EXPANSION * path.stat().st_size)
    try:
        with gzip.open(path) as file:
            return Source(path, names, settings, _read_limited(path, file, limit))  # type: ignore[arg-type]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise format_error(path, f"expected a file compressed by gzip, found: {error}") from None


def _read_limited(path: Path, file: BinaryIO, limit: int) -> bytes:
    content = file.read(limit + 1)
    if len(content) > limit:
        raise format_error(path, f"expected at most {limit} bytes, found more")
    return content


def _leave_out_others(table: BoxTable, names: ImageNames) -> BoxTable:
    """Return the table without images that are not among those that the user selected, if some of them are."""
    images = names.images
    if images is None or not images.selected:
        return table
    keep = images.listing.has(table.names)
    if keep.all() or not keep.any():
        return table
    note = f"{int((~keep).sum())} of {len(keep)} images of the box file are not among the images: left out"
    return replace(keep_images(table, keep), notes=(*table.notes, note))


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    """Turn the errors that a file of any format can cause, in reading or in decoding, into an InputError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise format_error(path, f"expected text in UTF-8, found: {error.reason} at byte {error.start}") from None
    except (
        UnicodeEncodeError
    ) as error:  # half of a surrogate pair, which JSON can express but Unicode text cannot contain
        part = error.object[max(error.start - 20, 0) : error.start + 20]
        raise format_error(path, f"expected names and labels of Unicode text, found {part!r}") from None
    except RecursionError:
        raise format_error(path, "expected flat lists and objects, found them nested too deeply") from None
    except msgspec.DecodeError as error:
        raise format_error(path, f"expected JSON, found: {error}") from None
    except OSError as error:
        where = str(path if error.filename is None else error.filename)
        expected = "expected a box file" if where == str(path) else "expected a file"
        raise InputError("boxes-missing", f"{where}: {expected}, found: {error.strerror or error}") from None


def _digest_sources(source: Source, boxes_format: str) -> str:
    """Return the SHA-256 of all files that were read and of the options that change their meaning.

    A run is resumed only with the same boxes.
    """
    digest, path, settings = hashlib.sha256(), source.path, source.settings
    if source.content is not None:
        digest.update(source.content)
    elif source.is_folder:
        suffixes = {".png"} if boxes_format == "label-map" else set(FOLDER_SUFFIXES)
        for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes):
            if file.is_file():
                digest.update(file.relative_to(path).as_posix().encode("utf-8", "surrogateescape") + b"\0")
                _add_file(digest, file)
    else:
        _add_file(digest, path)
    for extra in (settings.classes, settings.images_json):
        if extra:
            digest.update(require_regular_file(Path(extra)).read_bytes())
    if settings.columns or settings.voc_origin != Settings.voc_origin or settings.box_units:
        digest.update(f"{settings.columns} {settings.voc_origin} {settings.box_units}".encode())
    return digest.hexdigest()


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as opened:
        while block := opened.read(DIGEST_BLOCK_BYTES):
            digest.update(block)
