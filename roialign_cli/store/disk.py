"""Write to positions of one file; long runs of bytes bypass the page cache of the system where it allows that.

Through the cache, writing 50 MB costs 50 to 120 ms of a core (new pages, copies, write-back), which the backbone then lacks;
past the cache it costs about 5 ms. The disk then reads the caller's memory directly, so the position in the file, the length
and the address must be aligned.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError

BLOCK_BYTES = 4096  # of file systems; no block is written both through and past the cache
SECTOR_BYTES = 512  # to which the disk needs memory aligned
DIRECT_IO_MIN_BYTES = 1 << 20  # for less it is not worth waiting for the disk
DIRECT_IO_CHUNK_BYTES = 8 << 20


def open_disk(path: Path) -> Disk:
    """Open an output for writing. Raises OutputError if that fails."""
    try:
        return Disk(path)
    except OSError as error:
        message = f"{path}: expected a file to write to, found: {error.strerror}"
        raise OutputError("output-permission", message) from None


class Disk:
    """Write to a file that is open. Threads may share one. All methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cached = FileIO(path, "r+b")
        self._size = os.fstat(self._cached.fileno()).st_size
        self._direct: FileIO | None = None
        self._writing, self._syncing = threading.Lock(), threading.Lock()
        self._sync_error: OSError | None = None
        if hasattr(os, "O_DIRECT"):
            with suppress(OSError):  # not every file system has it
                self._direct = FileIO(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_DIRECT))

    def write(self, position: int, values: npt.NDArray[Any]) -> None:
        """Write the bytes of an array in C order, from `position` on."""
        self._check_size()
        with self._writing:  # all threads move the one position of the file
            self._write(position, np.ascontiguousarray(values).reshape(-1).view(np.uint8))

    def _write(self, position: int, data: npt.NDArray[np.uint8]) -> None:
        begin = -position % BLOCK_BYTES
        end = max(begin, len(data) - (position + len(data)) % BLOCK_BYTES)
        is_long = end - begin >= DIRECT_IO_MIN_BYTES
        if self._direct is None or not is_long or (data.ctypes.data - position) % SECTOR_BYTES:
            _write(self._cached, position, data)
            return
        _write(self._cached, position, data[:begin])
        for low in range(begin, end, DIRECT_IO_CHUNK_BYTES):
            self._write_direct(position + low, data[low : min(low + DIRECT_IO_CHUNK_BYTES, end)])
        _write(self._cached, position + end, data[end:])

    def _write_direct(self, position: int, data: npt.NDArray[np.uint8]) -> None:
        """Write one aligned piece past the cache, or through it if the system refuses that."""
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
        """Return bytes from `position` on, as they were last written."""
        data = os.pread(self._cached.fileno(), size, position)
        if len(data) < size:
            self._check_size()
            raise OSError(errno.EIO, f"expected {size} bytes at {position}, found {len(data)}")
        return data

    def sync(self) -> None:
        """Sync everything written to disk, and check that the file still has its name and size.

        After one failure every later call fails too: the system may drop what it could not write, and then report the next
        sync as a success. Threads may call this together.
        """
        with self._syncing:
            if self._sync_error is not None:
                raise self._sync_error
            try:
                os.fsync(self._cached.fileno())
            except OSError as error:
                self._sync_error = error
                raise
        self._check_size()
        try:
            same = os.path.samestat(self._path.stat(), os.fstat(self._cached.fileno()))
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "the file was removed under the run") from None
        if not same:
            raise OSError(errno.ESTALE, "another file has taken its place under the run")

    def _check_size(self) -> None:
        """Check that the file was not truncated: the next write would let it grow again, with holes where rows were."""
        found = os.fstat(self._cached.fileno()).st_size
        if found < self._size:
            raise OSError(errno.EIO, f"it was cut from {self._size:,} to {found:,} bytes under the run")

    def close(self) -> None:
        """Close the file."""
        self._cached.close()
        if self._direct is not None:
            self._direct.close()


class DeferredErrorFile(FileIO):
    """Let h5py write a file without seeing errors of the disk; the first error is raised when this file is closed.

    HDF5 crashes, or h5py only prints, if buffered data cannot be written when a dataset or a file is closed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+b")
        self._error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write data; report all of it as written even if it was not."""
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
        """Truncate the file; report success even if that failed."""
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
    """Write all bytes through the page cache."""
    left = data.data
    file.seek(position)
    while left:
        left = left[file.write(left) :]
