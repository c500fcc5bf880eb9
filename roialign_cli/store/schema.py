"""Define the format `roialign-features`, and find datasets in a file. See docs/reference/format.md.

Files of boxes have version 1. Files with one of REGION_TABLES have version 2, since a program that knows only version 1 would
leave these tables out of the checksums.
"""

from __future__ import annotations

import math
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import is_text
from roialign_cli.errors import OutputError

FORMAT = "roialign-features"
BOX_VERSION, REGION_VERSION = 1, 2
PENDING, DONE, FAILED = 0, 1, 2
STATUS_NAMES = ("pending", "done", "failed")
HEAP, HEAPS_BYTES = b"GCOL\1\0\0\0", 1 << 20  # HDF5's mark of a heap of strings; ours lie in the first bytes of a file
LINKED = "linked"  # attribute of a file that links others, whose paths are relative to it
ERROR_BYTES = 256  # for the message of a failed image
# Tables beside `boxes` with a line per box, and what one value is called; in the order in which checksums cover them.
COLUMNS: Mapping[str, str] = {
    "labels": "label", "scores": "score", "ids": "id", "levels": "level",
    "rotated": "rotated", "points": "points", "coverage": "coverage", "area": "area",
}  # fmt: skip
REGION_TABLES = ("rotated", "points", "coverage", "area")  # of regions that are not boxes


@dataclass(frozen=True)
class DatasetExtent:
    """Hold where a contiguous dataset lies: byte offset in the file, shape, type. An empty dataset has offset 0."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @cached_property
    def raw_dtype(self) -> np.dtype[Any]:
        """The type without HDF5's metadata, such as that strings are UTF-8."""
        return np.dtype(f"S{self.dtype.itemsize}") if self.dtype.kind == "S" else self.dtype

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def string_dtype(length: int) -> np.dtype[Any]:
    """Return the type of fixed-length UTF-8 strings of a number of bytes."""
    dtype: np.dtype[Any] = h5py.string_dtype("utf-8", max(length, 1))
    return dtype


def encode(values: list[str], length: int | None = None) -> npt.NDArray[np.bytes_]:
    """Encode strings as fixed-length UTF-8, truncated between characters if they are too long."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    length = length or max(map(len, encoded), default=1)
    return np.array([truncate_utf8(value, length) for value in encoded], f"S{max(length, 1)}")


def truncate_utf8(value: bytes, length: int) -> bytes:
    """Return at most `length` bytes of UTF-8, whole characters only."""
    if len(value) <= length:
        return value
    while length and value[length] & 0xC0 == 0x80:
        length -= 1
    return value[:length]


def features_path(layer: str, layers: int) -> str:
    """Return the path of a layer's dataset: features, or features/<layer> if several layers are tapped."""
    return "features" if layers == 1 else f"features/{layer}"


def open_file(path: Path) -> h5py.File:
    """Open a feature file for reading. Raises OutputError if it is not one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe might wait forever
            raise OutputError("file-unreadable", f"{path}: expected a feature file, found no regular file")
        _check_heaps(path)
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise OutputError("file-missing", f"{path}: expected a feature file, found nothing there") from None
    except OSError as error:
        raise OutputError("file-unreadable", f"{path}: expected an HDF5 file, found: {error}") from None
    try:
        name, version = file.attrs.get("format"), file.attrs.get("format_version")
    except Exception as error:  # h5py raises many kinds of errors on damaged files
        file.close()
        raise OutputError("file-unreadable", f"{path}: expected an HDF5 file, found: {error}") from None
    if not isinstance(name, str) or name != FORMAT:
        file.close()
        found = "no format" if name is None else repr(name)
        raise OutputError("file-format", f"{path}: expected a file of format {FORMAT}, found {found}")
    if not isinstance(version, np.integer) or version not in (BOX_VERSION, REGION_VERSION):
        file.close()
        expected = f"expected format version {BOX_VERSION} or {REGION_VERSION}"
        raise OutputError("file-version", f"{path}: {expected}, found {version}", "update roialign")
    return file


def _check_heaps(path: Path) -> None:
    """Raise OutputError if a heap of strings, which attributes have, is damaged: HDF5 may then read it forever.

    The heaps of feature files lie near their start. Source: HDF5's file format specification, III.E, global heap.
    """
    with path.open("rb") as file:
        head = file.read(HEAPS_BYTES)
    begin = head.find(HEAP)
    while begin >= 0:
        (size,) = struct.unpack_from("<Q", head, begin + 8) if begin + 16 <= len(head) else (0,)
        at, end = begin + 16, begin + size
        while at + 16 <= end <= len(head):
            index, length = struct.unpack_from("<H6xQ", head, at)
            at += length if index == 0 else 16 + -(-length // 8) * 8  # the length of free space includes its header
            if at - begin < 32 or (index == 0 and length < 16):
                break
        if end <= len(head) and not end - 16 < at <= end:  # HDF5 itself notices a heap that is cut off
            raise OutputError("file-damaged", f"{path}: expected a whole feature file, found a damaged heap of strings")
        begin = head.find(HEAP, begin + 16)


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """Return the attributes of a file that are text or numbers; readers must ignore others."""
    found = {}
    for name, value in file.attrs.items():
        plain = value.item() if isinstance(value, np.generic) else value
        plain = plain.decode("utf-8", "surrogateescape") if isinstance(plain, bytes) else plain
        if isinstance(plain, int | float) or (isinstance(plain, str) and is_text(plain) and is_text(name)):
            found[name] = plain
    return found


def extents(file: h5py.File, names: Iterable[str]) -> Mapping[str, DatasetExtent]:
    """Return where the named datasets lie, by their path in the file; datasets that do not exist are left out.

    Raises OutputError if one is not contiguous, or shares bytes with another.
    """
    found: dict[str, DatasetExtent] = {}
    for name in names:
        item = _item(file, name)
        if not isinstance(item, h5py.Dataset):
            continue
        offset = item.id.get_offset()
        plain = item.shape is not None and item.chunks is None and item.dtype.kind != "O"
        if not plain or (offset is None and item.size) or item.id.get_storage_size() not in (0, item.nbytes):
            message = f"{file.filename}: {name}: expected contiguous storage, found another layout"
            raise OutputError("file-layout", message)
        found[name] = DatasetExtent(offset or 0, item.shape, item.dtype)
    _check_places(Path(file.filename), found)
    return found


def _item(file: h5py.File, name: str) -> Any:
    """Return the item with a path in the file, or None. Raises OutputError if a link leads out of the file."""
    item: Any = file
    for part in name.split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise OutputError("file-layout", f"{file.filename}: {name}: expected a dataset in the file, found a link")
        try:
            item = item[part]
        except Exception as error:  # h5py raises many kinds of errors on damaged files
            reason = str(error).strip("'").split("\n", maxsplit=1)[0]
            raise OutputError("file-damaged", f"{file.filename}: {name}: expected a dataset, found: {reason}") from None
    return item


def _check_places(path: Path, extents: Mapping[str, DatasetExtent]) -> None:
    """Raise OutputError if a dataset shares bytes with another, or reaches beyond the end of the file."""
    before, end = "", 0
    for name, place in sorted(extents.items(), key=lambda item: item[1].offset):
        if 0 in place.shape or not place.offset:
            continue
        if place.offset < end:
            raise OutputError("file-layout", f"{path}: {name}: expected bytes of its own, found those of {before}")
        before, end = name, place.offset + place.row_bytes * (place.shape[0] if place.shape else 1)
    if end > path.stat().st_size:
        message = f"{path}: {before}: expected a file of at least {end:,} bytes, found {path.stat().st_size:,}"
        raise OutputError("file-truncated", message)
