"""The format `roialign-features`, version 1: names, types and places of what a file holds. See docs/format.md."""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError

FORMAT = "roialign-features"
VERSION = 1
PENDING, DONE, FAILED = 0, 1, 2
STATUS_NAMES = ("pending", "done", "failed")
HEAP, HEAPS_BYTES = b"GCOL\1\0\0\0", 1 << 20  # how HDF5 marks a heap of strings, and where ours are
LINKED = "linked"  # attribute of a file that only names others, relative to it
ERROR_BYTES = 256  # room for the message of a failed image


@dataclass(frozen=True)
class Place:
    """Where a contiguous dataset lies: byte offset in the file, shape, type. Offset 0: nothing was stored (size 0)."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def raw_dtype(self) -> np.dtype[Any]:
        """Its type without HDF5's own notes, such as that strings are UTF-8."""
        return np.dtype(f"S{self.dtype.itemsize}") if self.dtype.kind == "S" else self.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


def string_dtype(length: int) -> np.dtype[Any]:
    """Fixed-length UTF-8 of so many bytes."""
    dtype: np.dtype[Any] = h5py.string_dtype("utf-8", max(length, 1))
    return dtype


def encode(values: list[str], length: int | None = None) -> npt.NDArray[np.bytes_]:
    """Strings as fixed-length UTF-8, cut between characters where they are too long."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    length = length or max(map(len, encoded), default=1)
    return np.array([cut(value, length) for value in encoded], f"S{max(length, 1)}")


def cut(value: bytes, length: int) -> bytes:
    """At most `length` bytes of UTF-8, whole characters only."""
    if len(value) <= length:
        return value
    while length and value[length] & 0xC0 == 0x80:
        length -= 1
    return value[:length]


def features_path(layer: str, layers: int) -> str:
    """/features, or /features/<layer> where several layers are tapped."""
    return "features" if layers == 1 else f"features/{layer}"


def open_file(path: Path) -> h5py.File:
    """Open a feature file for reading, or OutputError if it is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # what is no file, such as a pipe, might be waited for
            raise OutputError("file-unreadable", f"{path}: expected a feature file, found no file but another thing")
        _check_heaps(path)
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise OutputError("file-missing", f"{path}: expected a feature file, found nothing there") from None
    except OSError as error:
        raise OutputError("file-unreadable", f"{path}: expected an HDF5 file, found: {error}") from None
    try:
        name, version = file.attrs.get("format"), file.attrs.get("format_version")
    except Exception as error:  # h5py raises many kinds where a file is damaged
        file.close()
        raise OutputError("file-unreadable", f"{path}: expected an HDF5 file, found: {error}") from None
    if not isinstance(name, str) or name != FORMAT:
        file.close()
        found = "no format" if name is None else repr(name)
        raise OutputError("file-format", f"{path}: expected a file of format {FORMAT}, found {found}")
    if not isinstance(version, np.integer) or version != VERSION:
        file.close()
        raise OutputError(
            "file-version", f"{path}: expected format version {VERSION}, found {version}", "update roialign"
        )
    return file


def _check_heaps(path: Path) -> None:
    """OutputError if a heap of strings, as attributes have, is damaged: HDF5 may then read it for ever.

    Heaps of feature files lie near their beginning. See HDF5's file format specification, III.E, global heap.
    """
    with path.open("rb") as file:
        head = file.read(HEAPS_BYTES)
    begin = head.find(HEAP)
    while begin >= 0:
        (size,) = struct.unpack_from("<Q", head, begin + 8) if begin + 16 <= len(head) else (0,)
        at, end = begin + 16, begin + size
        while at + 16 <= end <= len(head):
            index, length = struct.unpack_from("<H6xQ", head, at)
            at += length if index == 0 else 16 + -(-length // 8) * 8  # of what is free, the length is of all
            if at - begin < 32 or (index == 0 and length < 16):
                break
        if end <= len(head) and not end - 16 < at <= end:  # what is cut off, HDF5 sees itself
            raise OutputError("file-damaged", f"{path}: expected a whole feature file, found a damaged heap of strings")
        begin = head.find(HEAP, begin + 16)


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """Return the attributes of a file that are text or numbers; readers must ignore others."""
    found = {}
    for name, value in file.attrs.items():
        plain = value.item() if isinstance(value, np.generic) else value
        plain = plain.decode("utf-8", "surrogateescape") if isinstance(plain, bytes) else plain
        if isinstance(plain, str | int | float):
            found[name] = plain
    return found


def places(file: h5py.File) -> Mapping[str, Place]:
    """Every dataset of a feature file by its path, all of them contiguous; OutputError on any that is not."""
    found: dict[str, Place] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            offset = item.id.get_offset()
            if item.chunks is not None or item.dtype.kind == "O" or (offset is None and item.size):
                message = f"{file.filename}: {name}: expected contiguous storage, found another layout"
                raise OutputError("file-layout", message)
            found[name] = Place(offset or 0, item.shape, item.dtype)

    file.visititems(visit)
    return found
