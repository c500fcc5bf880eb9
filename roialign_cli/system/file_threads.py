"""Work on files that may hang, such as those of a lost network disk: on threads, each piece with a limit on its time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, TypeVar

POLL_SECONDS = 0.5  # how often a wait looks whether a piece takes too long

Result = TypeVar("Result")


class FileTask(Generic[Result]):
    """A piece of work: on which file, since when it is being done, and what came of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started: float | None = None
        self.finished = threading.Event()
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.given_up = False


class FileThreads(Generic[Result]):
    """Threads that work on files. One that does not come back in time is left to itself, and another takes its place.

    No thread can be ended from outside. These are daemons, so that at least the process can end: concurrent.futures waits for
    its threads whatever happens. `timeout` 0: no limit.
    """

    def __init__(self, work: Callable[[Path], Result], count: int, timeout: float) -> None:
        self._work = work
        self._timeout = timeout
        self._tasks: SimpleQueue[FileTask[Result] | None] = SimpleQueue()
        self._closed = False
        self._count = 0
        for _ in range(count):
            self._add()

    def start(self, path: Path) -> FileTask[Result]:
        """Work on a file when its turn comes."""
        task: FileTask[Result] = FileTask(path)
        self._tasks.put(task)
        return task

    def wait(self, task: FileTask[Result]) -> Result:
        """What came of it; TimeoutError if nothing did in time."""
        while not task.finished.wait(POLL_SECONDS):
            if self._timeout and task.started is not None and time.monotonic() - task.started > self._timeout:
                task.given_up = True
                self._add()
                raise TimeoutError
        if task.error is not None:
            raise task.error
        return task.result  # type: ignore[return-value]  # it has one, or an error

    def map(self, paths: Iterable[Path], ahead: int) -> Iterator[Callable[[], Result]]:
        """For each file in turn a call that waits for its result, while the next `ahead` are worked on."""
        waiting: deque[FileTask[Result]] = deque()
        for path in paths:
            waiting.append(self.start(path))
            if len(waiting) > ahead:
                yield partial(self.wait, waiting.popleft())
        while waiting:
            yield partial(self.wait, waiting.popleft())

    def close(self) -> None:
        """Let every thread end after the file it is at."""
        self._closed = True
        for _ in range(self._count):
            self._tasks.put(None)

    def _add(self) -> None:
        self._count += 1
        threading.Thread(target=self._run, name="roialign-files", daemon=True).start()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            task.started = time.monotonic()
            try:
                task.result = self._work(task.path)
            except BaseException as error:  # raised again where it is waited for
                task.error = error
            task.finished.set()
            if task.given_up:
                return
