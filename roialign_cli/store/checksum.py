"""What vouches for an image: a checksum of its features, and one of its line and the lines of its boxes in the other tables."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

ATTRIBUTES = "attributes_crc32"
TABLES = "images/table_crc32"
IMAGE_VERSION_TABLES = ("images/file_size", "images/modified", "images/sha256")  # which version of its file was read
IMAGE_TABLES = ("images/name", "images/size", "images/error", "images/crc32", *IMAGE_VERSION_TABLES)
BOX_TABLES = ("boxes", "labels", "scores", "ids", "levels")

Read = Callable[[str, int, int], npt.NDArray[Any]]  # dataset, first row, number of rows


def features_crc32(values: npt.NDArray[Any], so_far: int = 0) -> int:
    """CRC-32 of feature rows, going on from those before: layer after layer in the order of the attribute `layers`."""
    return zlib.crc32(np.ascontiguousarray(values).data, so_far)


def table_crc32(read: Read, there: Collection[str], image: int, status: int) -> int:
    """CRC-32 of an image's status, number of boxes, line in /images and lines in the tables of boxes that are there.

    Strings count without their padding, so that it holds in files of other string lengths, too.
    """
    first, stop = read("images/offset", image, 2).tolist()
    crc = zlib.crc32(f"{status} {stop - first}".encode())
    for names, begin, count in ((IMAGE_TABLES, image, 1), (BOX_TABLES, first, stop - first)):
        for name in names:
            if name in there:
                crc = zlib.crc32(_bytes(read(name, begin, count)), crc)
    return crc


def attributes_crc32(attributes: Mapping[str, Any]) -> int:
    """CRC-32 of the attributes by name, each as a line `name=value`, but of itself; HDF5 keeps no checksum of long ones."""
    lines = (f"{name}={value}\n" for name, value in sorted(attributes.items()) if name != ATTRIBUTES)
    return zlib.crc32("".join(lines).encode("utf-8", "surrogateescape"))


def _bytes(values: npt.NDArray[Any]) -> bytes:
    return b"\0".join(values.tolist()) if values.dtype.kind == "S" else values.tobytes()
