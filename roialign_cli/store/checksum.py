"""Compute the checksums of an image: one of its features, and one of its lines in all other tables."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.store.schema import COLUMNS

ATTRIBUTES = "attributes_crc32"
TABLES = "images/table_crc32"
IMAGE_VERSION_TABLES = (
    "images/file_size",
    "images/modified",
    "images/sha256",
)  # identify the version of the image file
IMAGE_TABLES = ("images/name", "images/size", "images/error", "images/crc32", *IMAGE_VERSION_TABLES)
BOX_TABLES = ("boxes", *COLUMNS)

ZEROS = memoryview(bytes(1 << 20))

Read = Callable[[str, int, int], npt.NDArray[Any]]  # dataset, first row, number of rows


def features_crc32(values: npt.NDArray[Any], so_far: int = 0) -> int:
    """Return the CRC-32 of feature rows after those before: layer after layer in the order of the attribute `layers`."""
    return zlib.crc32(np.ascontiguousarray(values).data, so_far)


def zeros_crc32(size: int, so_far: int = 0) -> int:
    """Return the CRC-32 of a number of zero bytes after what was before."""
    for begin in range(0, size, len(ZEROS)):
        so_far = zlib.crc32(ZEROS[: size - begin], so_far)
    return so_far


def table_crc32(read: Read, present: Collection[str], image: int, status: int) -> int:
    """Return the CRC-32 of an image's status, number of boxes, line in /images and lines in the tables of boxes.

    Strings count without their padding, so that the checksum also holds in files with other string lengths.
    """
    first, stop = read("images/offset", image, 2).tolist()
    crc = zlib.crc32(f"{status} {stop - first}".encode())
    for names, begin, count in ((IMAGE_TABLES, image, 1), (BOX_TABLES, first, stop - first)):
        for name in names:
            if name in present:
                crc = zlib.crc32(_bytes(read(name, begin, count)), crc)
    return crc


def attributes_crc32(attributes: Mapping[str, Any]) -> int:
    """Return the CRC-32 of all attributes but itself, sorted, each as a line `name=value`; HDF5 has none for long ones."""
    lines = (f"{name}={value}\n" for name, value in sorted(attributes.items()) if name != ATTRIBUTES)
    return zlib.crc32("".join(lines).encode("utf-8", "surrogateescape"))


def _bytes(values: npt.NDArray[Any]) -> bytes:
    """Return the bytes of values, strings without their padding."""
    return b"\0".join(values.tolist()) if values.dtype.kind == "S" else values.tobytes()
