"""Decode ahead of the computation: images of the next batches, on threads, a bounded number at a time."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roialign_cli.config import Settings
from roialign_cli.extraction.plan import Size
from roialign_cli.inputs.images import DecodedImage, ImageError, decode_image, timeout_error
from roialign_cli.system.file_threads import FileTask, FileThreads
from roialign_cli.types import Plan

PREFETCH_BATCHES = 2  # batches decoded while one is computed

Decoded = DecodedImage | ImageError


def load_batches(
    folder: Path, plan: Plan, batches: Iterable[Batch], settings: Settings
) -> Iterator[tuple[Batch, list[Decoded]]]:
    """Yield each batch with its images, or why one cannot be had; workers 0: one per core."""
    threads = FileThreads(decode_image, settings.workers or os.cpu_count() or 1, settings.image_timeout)

    def result(task: FileTask[DecodedImage]) -> Decoded:
        try:
            return threads.wait(task)
        except TimeoutError:
            return timeout_error(settings.image_timeout)
        except ImageError as error:
            return error

    waiting: deque[tuple[Batch, list[FileTask[DecodedImage]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, [threads.start(folder / plan.table.names[image]) for image in batch.images]))
            if len(waiting) > PREFETCH_BATCHES:
                ready, tasks = waiting.popleft()
                yield ready, [result(task) for task in tasks]
        while waiting:
            ready, tasks = waiting.popleft()
            yield ready, [result(task) for task in tasks]
    finally:
        threads.close()


@dataclass(frozen=True)
class Batch:
    """Images of one size, by their place in the plan, in ascending order."""

    images: tuple[int, ...]
    size: Size


def make_batches(plan: Plan, batch_size: int, pixels: int, cost: Callable[[Size], int] = math.prod) -> Iterator[Batch]:
    """Batches of equal-sized images that have boxes, in order of size's first image.

    The batches depend on the plan alone, not on what a former run has done, so that a resumed run repeats the very
    computation. batch_size 0: as many as `pixels` allows, from 1 to 8, where an image of a size costs cost(size).
    """
    usable = np.diff(plan.table.offset) > 0
    usable[list(plan.problems)] = False
    images = np.flatnonzero(usable)
    heights, widths = plan.sizes[images].T
    _, firsts, kinds = np.unique(heights << 32 | widths, return_index=True, return_inverse=True)
    groups = np.split(images[np.argsort(kinds, kind="stable")], np.cumsum(np.bincount(kinds))[:-1])
    for kind in np.argsort(firsts).tolist():
        height, width = plan.sizes[groups[kind][0]].tolist()
        step = batch_size or max(1, min(8, pixels // cost((height, width))))
        for begin in range(0, len(groups[kind]), step):
            yield Batch(tuple(groups[kind][begin : begin + step].tolist()), (height, width))
