"""Decode ahead of the computation: images of the next batches, on threads, a bounded number at a time."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from roialign_cli.config import Settings
from roialign_cli.inputs.images import ImageError, decode
from roialign_cli.planning import Batch
from roialign_cli.structures import Plan

AHEAD = 2  # batches decoded while one is computed
LOOK_SECONDS = 0.5  # how often a wait looks whether an image takes too long

Decoded = npt.NDArray[np.uint8] | ImageError


def load_batches(
    folder: Path, plan: Plan, batches: Iterable[Batch], settings: Settings
) -> Iterator[tuple[Batch, list[Decoded]]]:
    """Each batch with its images [H, W, 3] uint8, or why one has none; workers 0: one per core."""
    threads = _Threads(settings.workers or os.cpu_count() or 1, settings.image_timeout)
    waiting: deque[tuple[Batch, list[_Task]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, [threads.start(folder / plan.table.names[image]) for image in batch.images]))
            if len(waiting) > AHEAD:
                yield _collect(threads, *waiting.popleft())
        while waiting:
            yield _collect(threads, *waiting.popleft())
    finally:
        threads.close()


def _collect(threads: _Threads, batch: Batch, tasks: list[_Task]) -> tuple[Batch, list[Decoded]]:
    return batch, [threads.wait(task) for task in tasks]


class _Task:
    """An image to decode, since when it is being decoded, and what came of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started: float | None = None
        self.finished = threading.Event()
        self.result: Decoded | BaseException | None = None
        self.given_up = False


class _Threads:
    """Threads that decode. One that does not come back in time is left to itself, and another takes its place.

    No thread can be ended from outside: what it reads from may hang, such as a file on a lost network disk. It is a daemon, so
    that at least the process can end. (concurrent.futures waits for its threads whatever happens.)
    """

    def __init__(self, count: int, timeout: float) -> None:
        self._timeout = timeout
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._closed = False
        self._threads: list[threading.Thread] = []
        for _ in range(count):
            self._add()

    def start(self, path: Path) -> _Task:
        """Decode an image when its turn comes."""
        task = _Task(path)
        self._tasks.put(task)
        return task

    def wait(self, task: _Task) -> Decoded:
        """What came of it."""
        while not task.finished.wait(LOOK_SECONDS):
            if self._timeout and task.started is not None and time.monotonic() - task.started > self._timeout:
                task.given_up = True
                self._add()
                return ImageError("image-timeout", f"expected it to be decoded in {self._timeout:g} s, it was not")
        if isinstance(task.result, BaseException) and not isinstance(task.result, ImageError):
            raise task.result
        assert task.result is not None
        return task.result

    def close(self) -> None:
        """Let every thread end after the image it is at."""
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)

    def _add(self) -> None:
        thread = threading.Thread(target=self._work, name="decode", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            task.started = time.monotonic()
            try:
                task.result = decode(task.path)
            except BaseException as error:  # raised again where it is waited for
                task.result = error
            task.finished.set()
            if task.given_up:
                return
