"""Group the images of a plan into batches of one size, and decode the next batches on threads."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from roialign_cli.config import Settings
from roialign_cli.inputs.images import DecodedImage, ImageError, ImageFile, ImageSet, decode_image, timeout_error
from roialign_cli.system.file_threads import FileTask, FileThreads
from roialign_cli.types import Plan

PREFETCH_BATCHES = 2  # batches that are decoded while one is computed

Size = tuple[int, int]
Decoded = DecodedImage | ImageError


@dataclass(frozen=True)
class BatchLimit:
    """The pixels of network input and the images that a batch may have, if no batch size is set."""

    pixels: int = 2 << 20
    images: int = 8


@dataclass(frozen=True)
class Batch:
    """Images of one (height, width), by their index in the plan, in ascending order."""

    images: tuple[int, ...]
    size: Size


def make_batches(
    plan: Plan, batch_size: int, cost: Callable[[Size], int] = math.prod, limit: BatchLimit = BatchLimit()
) -> Iterator[Batch]:
    """Yield batches of equal-sized images that have boxes; sizes come in the order of their first image.

    The batches depend on the plan alone and not on what an earlier run has done, so that a resumed run repeats the same
    computation. With batch_size 0 a batch holds at least one image, and as many as the limit allows, where an image of a
    size costs cost(size) pixels.
    """
    usable = np.diff(plan.table.offset) > 0
    usable[list(plan.problems)] = False
    images = np.flatnonzero(usable)
    heights, widths = plan.sizes[images].T
    _, firsts, kinds = np.unique(heights << 32 | widths, return_index=True, return_inverse=True)
    groups = np.split(images[np.argsort(kinds, kind="stable")], np.cumsum(np.bincount(kinds))[:-1])
    for kind in np.argsort(firsts).tolist():
        height, width = plan.sizes[groups[kind][0]].tolist()
        step = batch_size or max(1, min(limit.images, limit.pixels // cost((height, width))))
        for begin in range(0, len(groups[kind]), step):
            yield Batch(tuple(groups[kind][begin : begin + step].tolist()), (height, width))


def load_batches(
    images: ImageSet, plan: Plan, batches: Iterable[Batch], settings: Settings
) -> Iterator[tuple[Batch, list[Decoded]]]:
    """Yield each batch with its decoded images; an image that cannot be decoded is given as its error."""
    decode = partial(decode_image, decoder=settings.decoder)
    threads = FileThreads(decode, settings.workers or os.cpu_count() or 1, settings.image_timeout)

    def result(task: FileTask[ImageFile, DecodedImage]) -> Decoded:
        try:
            return threads.wait(task)
        except TimeoutError:
            return timeout_error(settings.image_timeout)
        except ImageError as error:
            return error

    waiting: deque[tuple[Batch, list[FileTask[ImageFile, DecodedImage]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, [threads.start(images.file(plan.table.names[image])) for image in batch.images]))
            if len(waiting) > PREFETCH_BATCHES:
                ready, tasks = waiting.popleft()
                yield ready, [result(task) for task in tasks]
        while waiting:
            ready, tasks = waiting.popleft()
            yield ready, [result(task) for task in tasks]
    finally:
        threads.close()
