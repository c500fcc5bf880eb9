"""Run kernels that release the GIL on a pool of threads, safe under concurrent callers, signals and after a fork."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run_all(calls: Iterable[Callable[[], None]]) -> None:
    """Run the calls on torch.get_num_threads() threads, including this one, and return when all have ended.

    The first exception is raised and the remaining calls are dropped. In any case no call is still running, and so none
    still writes to the caller's arrays, when this function returns; also when a signal handler raises.
    """
    shared = _SharedCalls(calls)
    try:
        with suppress(RuntimeError):  # no thread can be started, or Python is shutting down: this thread does the rest
            for _ in range(min(torch.get_num_threads(), len(shared.todo)) - 1):
                _pool().submit(shared.help)
        while True:
            try:
                call = shared.todo.popleft()
            except IndexError:  # helpers have taken the others
                break
            call()
    finally:
        shared.finish()
    if shared.errors:
        raise shared.errors[0]


class _SharedCalls:
    """Hand calls to helpers, and know how many helpers are in one.

    Python runs signal handlers between any two instructions of the main thread, but not in helpers, so only they are counted.
    """

    def __init__(self, calls: Iterable[Callable[[], None]]) -> None:
        self.todo = deque(calls)
        self.errors: list[BaseException] = []
        self._running = 0
        self._changed = threading.Condition()

    def help(self) -> None:
        """Run calls until none is left."""
        while True:
            with self._changed:
                if not self.todo:
                    return
                call = self.todo.popleft()
                self._running += 1
            try:
                call()
            except BaseException as error:
                self.errors.append(error)
                self.todo.clear()
            finally:
                del call  # what it holds may be freed as soon as nothing runs
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    def finish(self) -> None:
        """Drop the calls that are left and wait for those that run; what signal handlers raise meanwhile is raised then."""
        interruption: BaseException | None = None
        while True:
            try:
                self.todo.clear()
                with self._changed:
                    self._changed.wait_for(lambda: self._running == 0)
                break
            except BaseException as error:
                interruption = interruption or error
        if interruption is not None:
            raise interruption


def _pool() -> ThreadPoolExecutor:
    """Return the pool of this process; a forked child inherits its parent's pool object but none of the threads."""
    key = (os.getpid(), torch.get_num_threads())
    pool = _pools.get(key)
    if pool is None:
        pool = _pools.setdefault(key, ThreadPoolExecutor(key[1], thread_name_prefix="roi_align"))
    return pool
