"""Decode ahead of the computation: images of the next batches, on threads, a bounded number at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from roialign_cli.config import Settings
from roialign_cli.inputs.images import ImageError, decode, too_slow
from roialign_cli.planning import Batch
from roialign_cli.structures import Plan
from roialign_cli.threads import Task, Threads

AHEAD = 2  # batches decoded while one is computed

Pixels = npt.NDArray[np.uint8]
Decoded = Pixels | ImageError


def load_batches(
    folder: Path, plan: Plan, batches: Iterable[Batch], settings: Settings
) -> Iterator[tuple[Batch, list[Decoded]]]:
    """Each batch with its images [H, W, 3] uint8, or why one has none; workers 0: one per core."""
    threads = Threads(decode, settings.workers or os.cpu_count() or 1, settings.image_timeout)

    def result(task: Task[Pixels]) -> Decoded:
        try:
            return threads.wait(task)
        except TimeoutError:
            return too_slow(settings.image_timeout)
        except ImageError as error:
            return error

    waiting: deque[tuple[Batch, list[Task[Pixels]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, [threads.start(folder / plan.table.names[image]) for image in batch.images]))
            if len(waiting) > AHEAD:
                ready, tasks = waiting.popleft()
                yield ready, [result(task) for task in tasks]
        while waiting:
            ready, tasks = waiting.popleft()
            yield ready, [result(task) for task in tasks]
    finally:
        threads.close()
