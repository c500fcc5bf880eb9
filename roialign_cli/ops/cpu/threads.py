"""Run kernels that release the GIL on a pool of threads, safe under concurrent callers and after a fork."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run_all(calls: Iterable[Callable[[], None]]) -> None:
    """Run the calls on torch.get_num_threads() threads, including this one, and return when all have ended.

    The first exception is raised and the remaining calls are dropped. In any case no call is still running, and so none
    still writes to the caller's arrays, when this function returns.
    """
    todo = deque(calls)

    def work() -> None:
        try:
            while True:
                try:
                    call = todo.popleft()
                except IndexError:
                    return
                call()
        except BaseException:
            todo.clear()
            raise

    helpers = min(torch.get_num_threads(), len(todo)) - 1
    futures = [_pool().submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        wait(futures)
    for future in futures:
        future.result()


def _pool() -> ThreadPoolExecutor:
    """Return the pool of this process; a forked child inherits its parent's pool object but none of the threads."""
    key = (os.getpid(), torch.get_num_threads())
    pool = _pools.get(key)
    if pool is None:
        pool = _pools.setdefault(key, ThreadPoolExecutor(key[1], thread_name_prefix="roi_align"))
    return pool
