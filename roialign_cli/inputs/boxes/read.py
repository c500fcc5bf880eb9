"""Read box files: one function in front of one module per format. All return the same convention: x1, y1, x2, y2 in pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from roialign_cli.arrays import unsafe_name
from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError, InputError
from roialign_cli.inputs.boxes import grid
from roialign_cli.inputs.boxes.common import Source, format_error
from roialign_cli.inputs.boxes.formats import (
    coco,
    coco_results,
    csv,
    jsonl,
    labelme,
    native,
    npz,
    parquet,
    voc,
    yolo,
)
from roialign_cli.inputs.boxes.json_objects import decode_top_level
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.inputs.boxes.recognise import FOLDER_SUFFIXES, recognise
from roialign_cli.inputs.boxes.select import select
from roialign_cli.inputs.boxes.validate import check_text, check_values
from roialign_cli.system.safe_read import require_regular_file
from roialign_cli.types import BoxTable

READERS: dict[str, Callable[[Source], BoxTable]] = {
    "native": lambda source: native.read(str(source.path), decode_top_level(source.path)),
    "jsonl": jsonl.read,
    "coco": lambda source: coco.read(str(source.path), decode_top_level(source.path)),
    "coco-results": coco_results.read,
    "voc": voc.read,
    "yolo": yolo.read,
    "labelme": labelme.read,
    "csv": csv.read,
    "parquet": parquet.read,
    "npz": npz.read,
}
DIGEST_BLOCK_BYTES = 1 << 22


def read_boxes(path: Path | None, folder: Path | None = None, settings: Settings | None = None) -> BoxTable:
    """Read, validate and select the boxes of a file or a folder of annotations, or of the setting `grid` without a file.

    `folder` has the images, against which names in the box file are resolved. Raises InputError naming file, image, index
    and value, or ConfigError if the settings do not fit together.
    """
    settings = settings or Settings()
    images = ImageNames(folder)
    if settings.grid:
        if path is not None:
            raise ConfigError("config-value", f"grid: expected no box file, found {path}")
        return select("grid", grid.make(settings.grid, images), settings)
    if path is None:
        raise ConfigError(
            "config-value", "expected a box file, found none", "name one, or use --whole-image or --grid 3x3"
        )
    source = Source(path, images, settings)
    with _input_errors(path):
        if not path.is_dir():
            require_regular_file(path)
        boxes_format = settings.boxes_format if settings.boxes_format != "auto" else recognise(path)
        table = READERS[boxes_format](source)
        digest = _digest_sources(path, settings)
    if (name := unsafe_name(table.names)) is not None:
        expected = "expected the name of an image inside the image folder, relative to it"
        raise InputError("image-name", f"{path}: {name!r}: {expected}")
    check_text(str(path), table)
    check_values(str(path), table, boxes_format)
    return replace(select(str(path), table, settings), sha256=digest)


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


def _digest_sources(path: Path, settings: Settings) -> str:
    """Return the SHA-256 of all files that were read and of the options that change their meaning.

    A run is resumed only with the same boxes.
    """
    digest = hashlib.sha256()
    files = (
        sorted(file for file in path.rglob("*") if file.suffix.lower() in FOLDER_SUFFIXES) if path.is_dir() else [path]
    )
    for file in filter(Path.is_file, files):
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode("utf-8", "surrogateescape") + b"\0")
        with file.open("rb") as opened:
            while block := opened.read(DIGEST_BLOCK_BYTES):
                digest.update(block)
    for extra in (settings.classes, settings.images_json):
        if extra:
            digest.update(require_regular_file(Path(extra)).read_bytes())
    if settings.columns or settings.voc_origin != Settings.voc_origin:
        digest.update(f"{settings.columns} {settings.voc_origin}".encode())
    return digest.hexdigest()
