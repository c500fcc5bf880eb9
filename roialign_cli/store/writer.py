"""Fill a laid-out file: one background thread writes rows at their positions, and each status byte after a data sync.

Other threads compute the checksums of rows that wait to be written: one thread checks 1.4 GB/s, and a GPU computes more.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError
from roialign_cli.store.checksum import TABLES, features_crc32, table_crc32, zeros_crc32
from roialign_cli.store.disk import open_disk
from roialign_cli.store.parts import read_extents
from roialign_cli.store.schema import DONE, ERROR_BYTES, FAILED, PENDING, DatasetExtent, truncate_utf8
from roialign_cli.types import FileVersion

CHECKPOINT_SECONDS = 2.0  # at most this much finished work is lost by a kill
MAX_QUEUED_BYTES = 128 << 20  # of rows that may wait for the disk, besides the ones being written
CHECKSUM_THREADS = max(1, min(4, (os.cpu_count() or 1) // 4))
MIN_TASK_BYTES = 16 << 10  # that a task counts for, so that the number of small ones is bounded, too


def open_writer(path: Path) -> FeatureWriter:
    """Return the writer of a file that has been laid out, and checked if another run made it."""
    return FeatureWriter(path, read_extents(path))


class FeatureWriter:
    """Write rows, checksums and statuses of one file; an error of the disk is raised by the next call or by `close`.

    The order is: rows, checksum and message; sync; status byte. So an image is marked as done only when its rows are on the
    disk, whenever the process or the power ends.
    """

    def __init__(self, path: Path, extents: Mapping[str, DatasetExtent]) -> None:
        self._path = path
        self.extents = extents
        self._disk = open_disk(path)
        self._tasks: queue.SimpleQueue[tuple[Callable[[], None], Callable[[], None], int] | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._room = threading.Condition()
        self._checksums: dict[int, Future[int]] = {}  # by image, of the rows given so far
        self._checksum_threads = ThreadPoolExecutor(CHECKSUM_THREADS, "roialign-checksum")
        self._finished: list[tuple[int, int]] = []  # (image, status), written but not yet synced
        self._synced_at = time.monotonic()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="roialign-writer", daemon=True)
        self._thread.start()

    def begin(self, image: int) -> None:
        """Announce the feature rows of an image, from the first one; rows written before do not count for its checksum."""
        self._checksums.pop(image, None)

    def rows(self, dataset: str, first: int, values: npt.NDArray[Any]) -> None:
        """Write rows first, first + 1, ... of a dataset."""
        self._put(lambda: self._write(dataset, first, values), size=values.nbytes)

    def features(
        self, dataset: str, image: int, first: int, values: npt.NDArray[Any], release: Callable[[], None] = lambda: None
    ) -> None:
        """Write feature rows of an image and add them to its checksum; call `release` when `values` may be used again."""
        before = self._checksums.get(image)
        checksum = self._checksum_threads.submit(lambda: features_crc32(values, before.result() if before else 0))
        self._checksums[image] = checksum

        def task() -> None:
            self._write(dataset, first, values)
            checksum.result()  # it needs the values, too

        self._put(task, release, values.nbytes)

    def no_features(self, dataset: str, image: int, first: int, count: int) -> None:
        """Leave feature rows of an image zero, as they are in a new sparse file, and add them to its checksum."""
        if count == 0:
            return
        size, before = count * self.extents[dataset].row_bytes, self._checksums.get(image)
        self._checksums[image] = self._checksum_threads.submit(
            lambda: zeros_crc32(size, before.result() if before else 0)
        )
        self._put(lambda: self._clear(dataset, first, count))

    def version(self, image: int, version: FileVersion) -> None:
        """Write which version of its file an image was read from, if the feature file has tables for it."""
        if "images/sha256" not in self.extents:
            return
        self._put(lambda: self._write_version(image, version))

    def reopen(self, images: npt.NDArray[np.integer]) -> None:
        """Mark images as pending, durably, before anything of theirs is written again."""
        self._put(lambda: self._reopen(images))

    def done(self, image: int, note: str = "") -> None:
        """Mark an image as done once its rows are on the disk; a note may say what is odd about them."""
        checksum = self._checksums.pop(image, None)
        self._put(lambda: self._finish(image, DONE, note, checksum))

    def failed(self, image: int, message: str) -> None:
        """Mark an image as failed, and record why."""
        checksum = self._checksums.pop(image, None)
        self._put(lambda: self._finish(image, FAILED, message, checksum))

    def close(self) -> None:
        """Write and sync everything, then close the file."""
        self._tasks.put(None)
        self._thread.join()
        self._checksum_threads.shutdown()
        self._disk.close()
        self._check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OutputError:
            if kind is None:
                raise

    def _put(self, task: Callable[[], None], release: Callable[[], None] = lambda: None, size: int = 0) -> None:
        """Queue a task that holds `size` bytes, when there is room for it or nothing else waits."""
        self._check()
        size = max(size, MIN_TASK_BYTES)
        with self._room:
            self._room.wait_for(lambda: self._queued_bytes == 0 or self._queued_bytes + size <= MAX_QUEUED_BYTES)
            self._queued_bytes += size
        self._tasks.put((task, release, size))

    def _check(self) -> None:
        if isinstance(self._error, OSError):
            reason = self._error.strerror or str(self._error)
            hint = "what is marked done is safe; free some space and run the same command to resume"
            raise OutputError("output-write", f"{self._path}: cannot be written: {reason}", hint) from self._error
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, release, size = item
            self._attempt(task)
            release()  # also after a failure: the caller may wait for the memory
            with self._room:
                self._queued_bytes -= size
                self._room.notify()
            if self._finished and time.monotonic() - self._synced_at > CHECKPOINT_SECONDS:
                self._attempt(self._checkpoint)
        self._attempt(self._checkpoint)

    def _attempt(self, task: Callable[[], None]) -> None:
        """Run a task, unless an earlier one failed: after a failure nothing is marked as done."""
        if self._error is None:
            try:
                task()
            except BaseException as error:  # raised again on the caller's thread
                self._error = error

    def _write(self, dataset: str, first: int, values: npt.NDArray[Any]) -> None:
        if not values.size:
            return
        place = self.extents[dataset]
        assert values.shape[1:] == place.shape[1:]
        assert values.dtype.itemsize == place.dtype.itemsize
        assert 0 <= first <= first + len(values) <= place.shape[0]
        self._disk.write(place.offset + first * place.row_bytes, values)

    def _write_version(self, image: int, version: FileVersion) -> None:
        self._write("images/file_size", image, np.array([version.size]))
        self._write("images/modified", image, np.array([version.modified]))
        self._write("images/sha256", image, np.frombuffer(version.sha256, np.uint8).reshape(1, -1))

    def _clear(self, dataset: str, first: int, count: int) -> None:
        """Write zeros where an earlier run has left other values."""
        found = self._read(dataset, first, count)
        if found.any():
            self._write(dataset, first, np.zeros_like(found))

    def _read(self, dataset: str, first: int, count: int) -> npt.NDArray[Any]:
        place = self.extents[dataset]
        data = self._disk.read(place.offset + first * place.row_bytes, count * place.row_bytes)
        return np.frombuffer(data, place.raw_dtype).reshape(count, *place.shape[1:])

    def _reopen(self, images: npt.NDArray[np.integer]) -> None:
        for image in images.tolist():
            self._write("images/status", image, np.array([PENDING], np.uint8))
        self._disk.sync()

    def _finish(self, image: int, status: int, message: str, checksum: Future[int] | None) -> None:
        text = truncate_utf8(message.encode("utf-8", "replace"), ERROR_BYTES)
        self._write("images/crc32", image, np.array([checksum.result() if checksum else 0], np.uint32))
        self._write("images/error", image, np.array([text], f"S{ERROR_BYTES}"))
        if TABLES in self.extents:
            of_tables = table_crc32(self._read, self.extents, image, status)
            self._write(TABLES, image, np.array([of_tables], np.uint32))
        self._finished.append((image, status))

    def _checkpoint(self) -> None:
        self._disk.sync()
        for image, status in self._finished:
            self._write("images/status", image, np.array([status], np.uint8))
        if self._finished:
            self._disk.sync()
        self._finished.clear()
        self._synced_at = time.monotonic()
