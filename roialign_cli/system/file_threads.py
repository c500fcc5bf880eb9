"""Run work on files in threads with a time limit per file, because reading can hang, for example on a lost network disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

POLL_SECONDS = 0.5  # interval at which a waiting caller checks the time limit

Item = TypeVar("Item")
Result = TypeVar("Result")


class FileTask(Generic[Item, Result]):
    """The work on one file: when it started, in seconds of the monotonic clock, and its result or error."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.started: float | None = None
        self.finished = threading.Event()
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.given_up = False


class FileThreads(Generic[Item, Result]):
    """A pool of threads that work on files; it replaces a thread whose work takes longer than `timeout` seconds.

    A thread cannot be ended from outside, so it is abandoned. The threads are daemons, so that the process can exit in
    spite of them; concurrent.futures would wait for its threads. `timeout` 0: no limit.
    """

    def __init__(self, work: Callable[[Item], Result], count: int, timeout: float) -> None:
        self._work = work
        self._timeout = timeout
        self._tasks: SimpleQueue[FileTask[Item, Result] | None] = SimpleQueue()
        self._closed = False
        self._count = 0
        for _ in range(count):
            self._add_thread()

    def start(self, item: Item) -> FileTask[Item, Result]:
        """Queue the work on a file and return its task."""
        task: FileTask[Item, Result] = FileTask(item)
        self._tasks.put(task)
        return task

    def wait(self, task: FileTask[Item, Result]) -> Result:
        """Wait for a task and return its result. Raises the error of the work, or TimeoutError after the time limit."""
        while not task.finished.wait(POLL_SECONDS):
            if self._timeout and task.started is not None and time.monotonic() - task.started > self._timeout:
                task.given_up = True
                self._add_thread()
                raise TimeoutError
        if task.error is not None:
            raise task.error
        return task.result  # type: ignore[return-value]  # a finished task without an error has a result

    def map(self, items: Iterable[Item], ahead: int) -> Iterator[Callable[[], Result]]:
        """Yield, for each file in order, a function that waits for its result, while the next `ahead` files are worked on."""
        waiting: deque[FileTask[Item, Result]] = deque()
        for item in items:
            waiting.append(self.start(item))
            if len(waiting) > ahead:
                yield partial(self.wait, waiting.popleft())
        while waiting:
            yield partial(self.wait, waiting.popleft())

    def close(self) -> None:
        """Let every thread end after its current file."""
        self._closed = True
        for _ in range(self._count):
            self._tasks.put(None)

    def _add_thread(self) -> None:
        self._count += 1
        threading.Thread(target=self._run, name="roialign-files", daemon=True).start()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            task.started = time.monotonic()
            try:
                task.result = self._work(task.item)
            except BaseException as error:  # `wait` raises it in the caller's thread
                task.error = error
            task.finished.set()
            if task.given_up:
                return
