"""Decode ahead of the computation: images of the next batches, on threads, a bounded number at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from roialign_cli.config import Settings
from roialign_cli.inputs.images import ImageError, Picture, read_picture, too_slow
from roialign_cli.planning import Batch
from roialign_cli.structures import Plan
from roialign_cli.threads import Task, Threads

AHEAD = 2  # batches decoded while one is computed

Decoded = Picture | ImageError


def load_batches(
    folder: Path, plan: Plan, batches: Iterable[Batch], settings: Settings
) -> Iterator[tuple[Batch, list[Decoded]]]:
    """Yield each batch with its images, or why one cannot be had; workers 0: one per core."""
    threads = Threads(read_picture, settings.workers or os.cpu_count() or 1, settings.image_timeout)

    def result(task: Task[Picture]) -> Decoded:
        try:
            return threads.wait(task)
        except TimeoutError:
            return too_slow(settings.image_timeout)
        except ImageError as error:
            return error

    waiting: deque[tuple[Batch, list[Task[Picture]]]] = deque()
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
