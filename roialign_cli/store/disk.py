"""Positioned writes to one file; long runs of bytes go past the system's page cache where it lets them.

Through the cache, 50 MB cost 50 to 120 ms of a core (new pages, copies, writing back), which the backbone then lacks; past
it about 5. The disk reads the caller's memory itself, so place in the file, length and address must be aligned.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError

BLOCK_BYTES = 4096  # of file systems: what goes past the cache shares no block with what does not
SECTOR_BYTES = 512  # to which memory must be aligned for the disk
DIRECT_IO_MIN_BYTES = 1 << 20  # bytes; for less it is not worth waiting for the disk
DIRECT_IO_CHUNK_BYTES = 8 << 20  # bytes at a time


def open_disk(path: Path) -> Disk:
    """Open an output for writing, or raise OutputError."""
    try:
        return Disk(path)
    except OSError as error:
        message = f"{path}: expected a file to write to, found: {error.strerror}"
        raise OutputError("output-permission", message) from None


class Disk:
    """A file open for writing. All methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cached = FileIO(path, "r+b")
        self._size = os.fstat(self._cached.fileno()).st_size
        self._direct: FileIO | None = None
        if hasattr(os, "O_DIRECT"):
            with suppress(OSError):  # not every file system has it
                self._direct = FileIO(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_DIRECT))

    def write(self, position: int, values: npt.NDArray[Any]) -> None:
        """Write an array's bytes in C order from `position` on."""
        self._check_size()
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        begin = -position % BLOCK_BYTES
        end = max(begin, len(data) - (position + len(data)) % BLOCK_BYTES)
        aligned = (data.ctypes.data - position) % SECTOR_BYTES == 0
        if self._direct is None or not aligned or end - begin < DIRECT_IO_MIN_BYTES:
            _write(self._cached, position, data)
            return
        _write(self._cached, position, data[:begin])
        for low in range(begin, end, DIRECT_IO_CHUNK_BYTES):
            self._write_direct(position + low, data[low : min(low + DIRECT_IO_CHUNK_BYTES, end)])
        _write(self._cached, position + end, data[end:])

    def _write_direct(self, position: int, data: npt.NDArray[np.uint8]) -> None:
        """One aligned piece; by way of the cache after all if the system finds fault with it."""
        written = 0
        if self._direct is not None:
            try:
                self._direct.seek(position)
                written = self._direct.write(data.data)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct.close()
                self._direct = None
        _write(self._cached, position + written, data[written:])

    def read(self, position: int, size: int) -> bytes:
        """Bytes from `position` on, as they were written last."""
        data = os.pread(self._cached.fileno(), size, position)
        if len(data) < size:
            raise OSError(errno.EIO, f"expected {size} bytes at {position}, found {len(data)}")
        return data

    def sync(self) -> None:
        """All that was written is on the disk, in the file that has the name now."""
        os.fsync(self._cached.fileno())
        self._check_size()
        try:
            same = os.path.samestat(self._path.stat(), os.fstat(self._cached.fileno()))
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "the file was removed under the run") from None
        if not same:
            raise OSError(errno.ESTALE, "another file has taken its place under the run")

    def _check_size(self) -> None:
        """A file that was cut short would grow again with the next write, and have holes where rows were."""
        found = os.fstat(self._cached.fileno()).st_size
        if found < self._size:
            raise OSError(errno.EIO, f"it was cut from {self._size:,} to {found:,} bytes under the run")

    def close(self) -> None:
        """Close the file."""
        self._cached.close()
        if self._direct is not None:
            self._direct.close()


class DeferredErrorFile(FileIO):
    """A file for h5py to write, which never sees an error of the disk: the first is raised when it is closed, here.

    HDF5 crashes, or h5py only prints, where what was kept back cannot be written as a dataset or a file is closed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+b")
        self._error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """All of it; told to be written though it may not be."""
        whole = memoryview(data).cast("B")
        left = whole
        while self._error is None and left:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self._error = error
        if self._error is not None:
            self.seek(len(left), os.SEEK_CUR)
        return len(whole)

    def truncate(self, size: int | None = None, /) -> int:
        """Of that size; told to be though it may not be."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)
        if self._error is not None:
            raise self._error


def _write(file: FileIO, position: int, data: npt.NDArray[np.uint8]) -> None:
    left = data.data
    file.seek(position)
    while left:
        left = left[file.write(left) :]
