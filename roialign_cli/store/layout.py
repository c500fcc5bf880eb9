"""Lay out a whole feature file: allocate every dataset, reserve the space, rename the complete file into place."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError
from roialign_cli.store.checksum import ATTRIBUTES, TABLES, attributes_crc32
from roialign_cli.store.disk import BLOCK_BYTES, DIRECT_IO_MIN_BYTES, DeferredErrorFile, Disk
from roialign_cli.store.schema import (
    BOX_VERSION,
    ERROR_BYTES,
    FORMAT,
    PENDING,
    REGION_TABLES,
    REGION_VERSION,
    encode,
    extents,
    features_path,
    open_file,
    string_dtype,
)
from roialign_cli.system.atomic import check_name, replace_atomically
from roialign_cli.types import Plan


@dataclass(frozen=True)
class Layout:
    """Describe what a file will hold: row shape of each layer, type, whether levels are stored, and its attributes.

    `tables` has the row shapes of `coverage` and `area`, if the file has them: float32, written with the features.
    `versions`: whether the file records which version of each image was read, as all new files do. `sparse`: whether some rows
    may never be written, so that no space is reserved.
    """

    layers: dict[str, tuple[int, ...]]
    dtype: str
    levels: bool
    attributes: dict[str, Any]
    versions: bool = True
    sparse: bool = False
    tables: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def feature_bytes(self, rows: int) -> int:
        """Return the bytes of the features of a number of boxes."""
        per_row = sum(int(np.prod(shape)) for shape in self.layers.values())
        return rows * per_row * np.dtype(self.dtype).itemsize


def check_space(path: Path, needed: int) -> int:
    """Return the free bytes of the output's folder. Raises OutputError if they do not suffice or the path cannot be used."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError("output-folder", f"{path}: expected an existing folder, found none", f"mkdir -p {folder}")
    check_name(path)
    if path.name == "-":
        message = (
            f"{path}: expected the name of a file, found the sign for stdout, where an HDF5 file cannot be written"
        )
        raise OutputError("output-name", message, "-o features.h5")
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "no regular file"
        raise OutputError("output-is-folder", f"{path}: expected the name of a file, found {found}")
    if not os.access(folder, os.W_OK):
        raise OutputError("output-permission", f"{path}: expected a folder to write in, found no write permission")
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"{path}: expected {needed:,} bytes of free space, found {free:,}"
        raise OutputError("output-space", message, "use --dtype float16, --reduce mean, or another disk")
    return free


def create_file(path: Path, plan: Plan, layout: Layout) -> None:
    """Allocate and reserve a file beside its final path, write its tables, and rename it into place."""
    tables = initial_tables(plan, layout)
    with replace_atomically(path, "output-create") as partial:
        _allocate(partial, plan, layout, tables)
        if not layout.sparse:
            with partial.open("r+b") as handle:
                _reserve(handle.fileno(), os.fstat(handle.fileno()).st_size, path)
        with open_file(partial) as file:
            places = extents(file, tables)
        disk = Disk(partial)
        try:
            for name, (_, values) in tables.items():
                disk.write(places[name].offset, values)
        finally:
            disk.close()


def initial_tables(plan: Plan, layout: Layout) -> dict[str, tuple[np.dtype[Any], npt.NDArray[Any]]]:
    """Return all datasets except features: HDF5's type and the initial values."""
    table, images = plan.table, plan.images
    found: dict[str, tuple[np.dtype[Any], npt.NDArray[Any]]] = {"boxes": (np.dtype(np.float32), table.boxes)}
    columns: Mapping[str, npt.NDArray[Any] | None] = {"labels": table.labels, "scores": table.scores, "ids": table.ids}
    for name, values in columns.items():
        if values is not None:
            stored = encode([str(value) for value in values]) if values.dtype.kind == "U" else values
            found[name] = (string_dtype(stored.itemsize) if values.dtype.kind == "U" else stored.dtype, stored)
    if layout.levels:
        found["levels"] = (np.dtype(np.uint8), np.zeros(plan.rows, np.uint8))
    for name, given in (("rotated", table.rotated), ("points", table.points)):
        if given is not None:
            found[name] = (np.dtype(np.float32), given)
    for name, row in layout.tables.items():
        found[name] = (np.dtype(np.float32), np.zeros((plan.rows, *row), np.float32))
    longest = int(np.diff(table.names.ends).max(initial=1))
    names = np.fromiter(table.names.encoded(), f"S{longest}", images)
    errors = np.zeros(images, f"S{ERROR_BYTES}")
    found["images/name"] = (string_dtype(names.itemsize), names)
    found["images/offset"] = (np.dtype(np.int64), table.offset)
    found["images/size"] = (np.dtype(np.int64), plan.sizes)
    found["images/status"] = (np.dtype(np.uint8), np.full(images, PENDING, np.uint8))
    found["images/error"] = (string_dtype(ERROR_BYTES), errors)
    empty: dict[str, tuple[str, tuple[int, ...]]] = {"images/crc32": ("uint32", ()), TABLES: ("uint32", ())}
    if layout.versions:
        empty |= {
            "images/file_size": ("int64", ()),
            "images/modified": ("int64", ()),
            "images/sha256": ("uint8", (32,)),
        }
    for name, (kind, row) in empty.items():
        found[name] = (np.dtype(kind), np.zeros((images, *row), kind))
    return found


def _allocate(
    path: Path, plan: Plan, layout: Layout, tables: Mapping[str, tuple[np.dtype[Any], npt.NDArray[Any]]]
) -> None:
    """Allocate every dataset contiguously at once, so that no HDF5 metadata changes in the file afterwards."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5py.h5t.CSET_UTF8)
    wanted = {
        features_path(layer, len(layout.layers)): ((plan.rows, *shape), np.dtype(layout.dtype))
        for layer, shape in layout.layers.items()
    }
    wanted |= {name: (values.shape, kind) for name, (kind, values) in tables.items()}
    # Long datasets are aligned, so that they can be written past the page cache.
    aligned = {"alignment_threshold": DIRECT_IO_MIN_BYTES, "alignment_interval": BLOCK_BYTES}
    with DeferredErrorFile(path) as target, h5py.File(target, "w", libver=("v110", "v110"), **aligned) as file:
        version = BOX_VERSION if tables.keys().isdisjoint(REGION_TABLES) else REGION_VERSION
        attributes = {"format": FORMAT, "format_version": version, **layout.attributes}
        attributes["layers"] = json.dumps(list(layout.layers))
        file.attrs.update({**attributes, ATTRIBUTES: attributes_crc32(attributes)})
        for name, (shape, dtype) in wanted.items():
            kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=properties, lcpl=links)


def _reserve(descriptor: int, size: int, path: Path) -> None:
    """Reserve the blocks if the file system can do it at once; elsewhere the free-space check has to suffice.

    This calls Linux's fallocate and not posix_fallocate, of which glibc's version writes every block if the system call is
    missing.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
    library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if library.fallocate(descriptor, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError("output-space", f"{path}: cannot reserve {size:,} bytes: {os.strerror(code)}")
