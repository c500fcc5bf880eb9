"""A small pool of threads for kernels that release the GIL: safe under concurrent callers and after a fork."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run_all(calls: Iterable[Callable[[], None]]) -> None:
    """Run the calls on torch.get_num_threads() threads, this one included; return when all have ended.

    The first failure is raised, the calls not yet begun are dropped. Whatever happens, no call is still running (and
    writing into the caller's arrays) when this returns.
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
    """The pool of this process: a forked child inherits the parent's pool object but none of its threads."""
    key = (os.getpid(), torch.get_num_threads())
    pool = _pools.get(key)
    if pool is None:
        pool = _pools.setdefault(key, ThreadPoolExecutor(key[1], thread_name_prefix="roi_align"))
    return pool
