"""Lay a feature file out whole: every dataset allocated, the space reserved, the file renamed into place complete."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError
from roialign_cli.store.checksum import TABLES
from roialign_cli.store.disk import BLOCK, LONG
from roialign_cli.store.schema import ERROR_BYTES, FORMAT, VERSION, encode, features_path, string_dtype
from roialign_cli.structures import Plan


@dataclass(frozen=True)
class Layout:
    """What a file will hold: row shape and type of each layer, whether levels are stored, and its provenance."""

    layers: dict[str, tuple[int, ...]]
    dtype: str
    levels: bool
    attributes: dict[str, Any]

    def feature_bytes(self, rows: int) -> int:
        """Bytes of all features."""
        per_row = sum(int(np.prod(shape)) for shape in self.layers.values())
        return rows * per_row * np.dtype(self.dtype).itemsize


def check_space(path: Path, needed: int) -> int:
    """Free bytes where the file will be; OutputError if they are fewer than needed or the folder is of no use."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError("output-folder", f"{path}: expected an existing folder, found none", f"mkdir -p {folder}")
    if path.is_dir():
        raise OutputError("output-is-folder", f"{path}: expected the name of a file, found a folder")
    if not os.access(folder, os.W_OK):
        raise OutputError("output-permission", f"{path}: expected a folder to write in, found no write permission")
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"{path}: expected {needed:,} bytes of free space, found {free:,}"
        raise OutputError("output-space", message, "use --dtype float16, --reduce mean, or another disk")
    return free


def create(path: Path, plan: Plan, layout: Layout) -> None:
    """Write the file beside its place, allocate and reserve everything, sync, and rename it into place."""
    partial = path.with_name(path.name + ".partial")
    try:
        aligned = {
            "alignment_threshold": LONG,
            "alignment_interval": BLOCK,
        }  # what is long can be written past the cache
        with h5py.File(partial, "w", libver=("v110", "v110"), locking=False, **aligned) as file:
            file.attrs.update({"format": FORMAT, "format_version": VERSION, **layout.attributes})
            file.attrs["layers"] = json.dumps(list(layout.layers))
            _write(file, plan, layout)
        with partial.open("r+b") as handle:
            _reserve(handle.fileno(), os.fstat(handle.fileno()).st_size, path)
            os.fsync(handle.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OutputError:
        partial.unlink(missing_ok=True)
        raise
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError("output-create", f"{path}: cannot be created: {error.strerror or error}") from None


def _write(file: h5py.File, plan: Plan, layout: Layout) -> None:
    table = plan.table
    for layer, shape in layout.layers.items():
        _allocate(file, features_path(layer, len(layout.layers)), (plan.rows, *shape), np.dtype(layout.dtype))
    _allocate(file, "boxes", (plan.rows, 4), np.dtype(np.float32), table.boxes)
    columns: Mapping[str, npt.NDArray[Any] | None] = {"labels": table.labels, "scores": table.scores, "ids": table.ids}
    for name, values in columns.items():
        if values is not None:
            stored = encode([str(value) for value in values]) if values.dtype.kind == "U" else values
            kind = string_dtype(stored.itemsize) if values.dtype.kind == "U" else stored.dtype
            _allocate(file, name, stored.shape, kind, stored)
    if layout.levels:
        _allocate(file, "levels", (plan.rows,), np.dtype(np.uint8), np.zeros(plan.rows, np.uint8))
    names = encode(list(table.names))
    _allocate(file, "images/name", names.shape, string_dtype(names.itemsize), names)
    _allocate(file, "images/offset", table.offset.shape, np.dtype(np.int64), table.offset)
    _allocate(file, "images/size", plan.sizes.shape, np.dtype(np.int64), plan.sizes)
    _allocate(file, "images/status", names.shape, np.dtype(np.uint8), np.zeros(names.shape, np.uint8))
    errors = encode([""] * plan.images, ERROR_BYTES)
    _allocate(file, "images/error", names.shape, string_dtype(ERROR_BYTES), errors)
    for name in ("images/crc32", TABLES):
        _allocate(file, name, names.shape, np.dtype(np.uint32), np.zeros(names.shape, np.uint32))


def _allocate(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], values: npt.NDArray[Any] | None = None
) -> None:
    """A contiguous dataset whose place is fixed at once: nothing of HDF5's own changes in the file afterwards."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5py.h5t.CSET_UTF8)
    kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape)
    dataset = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=properties, lcpl=links))
    if values is not None and values.size:
        dataset[...] = values.view(dtype)  # the same bytes, but HDF5 tells UTF-8 from ASCII by the type


def _reserve(descriptor: int, size: int, path: Path) -> None:
    """Reserve the blocks where the file system can do it at once; elsewhere the free-space check must do.

    Linux's fallocate, not posix_fallocate: glibc's version of that writes every block where the system call is missing.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
    library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if library.fallocate(descriptor, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError("output-space", f"{path}: cannot reserve {size:,} bytes: {os.strerror(code)}")


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, where folders can be synced (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
