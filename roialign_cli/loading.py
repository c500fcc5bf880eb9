"""Decode ahead of the computation: images of the next batches, on threads, a bounded number at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from roialign_cli.inputs.images import ImageError, decode
from roialign_cli.planning import Batch
from roialign_cli.structures import Plan

AHEAD = 2  # batches decoded while one is computed

Decoded = npt.NDArray[np.uint8] | ImageError


def load_batches(
    folder: Path, plan: Plan, batches: Iterable[Batch], workers: int
) -> Iterator[tuple[Batch, list[Decoded]]]:
    """Each batch with its images [H, W, 3] uint8, or why one has none; workers 0: one per core."""

    def load(image: int) -> Decoded:
        try:
            return decode(folder / plan.table.names[image])
        except ImageError as error:
            return error

    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="decode")
    waiting: deque[tuple[Batch, list[Future[Decoded]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, [pool.submit(load, image) for image in batch.images]))
            if len(waiting) > AHEAD:
                yield _collect(*waiting.popleft())
        while waiting:
            yield _collect(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(batch: Batch, futures: list[Future[Decoded]]) -> tuple[Batch, list[Decoded]]:
    return batch, [future.result() for future in futures]
