"""Boxes + image folder -> plan: which images, which rows, how big; and the batches of equal-sized images."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from roialign_cli.config import Settings
from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes import read_boxes
from roialign_cli.inputs.images import NOT_THERE, ImageError, list_images, read_size, too_slow
from roialign_cli.store.layout import check_space
from roialign_cli.structures import BoxTable, Integers, Plan
from roialign_cli.threads import Threads

AHEAD = 1024  # headers read while one is waited for

Size = tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Images of one size, by their place in the plan, in ascending order."""

    images: tuple[int, ...]
    size: Size


def plan_run(folder: Path, boxes: Path | None, output: Path, settings: Settings) -> Plan:
    """Everything that can be checked without the backbone; needs no torch, so that mistakes are told at once."""
    check_space(output, 0)
    table = read_boxes(boxes, folder, settings)
    return make_plan(
        folder, table, clip=settings.clip, on_error=settings.on_error, image_timeout=settings.image_timeout
    )


def make_plan(folder: Path, table: BoxTable, *, clip: bool, on_error: str, image_timeout: float = 0.0) -> Plan:
    """Look every image up, learn its size from the box file or its header, check the boxes against it.

    A size that the box file states is taken for true until the image is decoded; where boxes are clipped or relative, it
    matters, so headers are read.

    Images that are missing or unreadable become `problems`; with on_error `stop` the first is raised. A box file none
    of whose images is there is an error in any case.
    """
    listed = list_images(folder)
    missing = [name for name in table.names if name not in listed and not (folder / name).is_file()]
    if missing and (on_error == "stop" or len(missing) == len(table.names)):
        raise _missing(folder, missing, listed, len(table.names))

    sized = clip or table.shares is not None
    if table.sizes is not None and not sized:  # stated by the box file: no need to open every image
        absent = set(missing)
        problems = {i: NOT_THERE for i, name in enumerate(table.names) if name in absent}
        sizes = table.sizes.copy()
        sizes[list(problems)] = 0
    else:
        sizes, problems = _read_sizes(folder, table.names, on_error, image_timeout)
    known = np.repeat(sizes, np.diff(table.offset), axis=0)[:, ::-1]  # (width, height) of each row's image
    boxes = table.boxes
    if table.shares is not None:
        boxes = (table.shares * np.concatenate([known, known], axis=1)).astype(np.float32)
    readable = known.min(axis=1, initial=1) > 0
    outside = readable & ((boxes[:, :2] < 0) | (boxes[:, 2:] > known)).any(axis=1)
    if clip:
        limits = np.where(readable[:, None], known, np.inf)
        boxes = np.clip(boxes, 0, np.concatenate([limits, limits], axis=1)).astype(np.float32)
    return Plan(
        table=replace(table, boxes=boxes, shares=None),
        sizes=sizes,
        problems=problems,
        unused_images=len(listed - set(table.names)),
        outside_boxes=int(outside.sum()),
        empty_boxes=int((readable[:, None] & (boxes[:, 2:] <= boxes[:, :2])).any(axis=1).sum()),
        sized=sized,
    )


def _read_sizes(folder: Path, names: tuple[str, ...], on_error: str, timeout: float) -> tuple[Integers, dict[int, str]]:
    """(height, width) of every image [M, 2] from its header, zeros for those that have a problem; and the problems."""

    threads = Threads(read_size, min(32, 4 * (os.cpu_count() or 1)), timeout)
    sizes, problems = np.zeros((len(names), 2), np.int64), {}
    try:
        for i, result in enumerate(threads.map((folder / name for name in names), AHEAD)):
            try:
                sizes[i] = result()
            except (ImageError, TimeoutError) as error:
                problem = error if isinstance(error, ImageError) else too_slow(timeout)
                if on_error == "stop":
                    raise problem.of(names[i]) from None
                problems[i] = problem.message
    finally:
        threads.close()
    return sizes, problems


def _missing(folder: Path, missing: list[str], listed: set[str], total: int) -> InputError:
    if not listed:
        return InputError("images-empty", f"{folder}: expected images, found none")
    close = difflib.get_close_matches(missing[0], sorted(listed)[:10000], n=1, cutoff=0.6)
    same = [name for name in listed if Path(name).name == Path(missing[0]).name]
    nearest = (same or close or [""])[0]
    hint = f'the nearest name there is "{nearest}"' if nearest else f"{len(listed)} images are there"
    count = f"{len(missing)} of {total} images of the box file are not there, the first is"
    return InputError("image-missing", f'{folder}: {count} "{missing[0]}"', hint)


def make_batches(plan: Plan, batch_size: int, pixels: int, cost: Callable[[Size], int] = math.prod) -> Iterator[Batch]:
    """Batches of equal-sized images that have boxes, in order of size's first image.

    The batches depend on the plan alone, not on what a former run has done, so that a resumed run repeats the very
    computation. batch_size 0: as many as `pixels` allows, from 1 to 8, where an image of a size costs cost(size).
    """
    counts = np.diff(plan.table.offset)
    groups: dict[Size, list[int]] = {}
    for i, (height, width) in enumerate(plan.sizes.tolist()):
        if counts[i] and i not in plan.problems:
            groups.setdefault((height, width), []).append(i)
    for size, images in groups.items():
        step = batch_size or max(1, min(8, pixels // cost(size)))
        for begin in range(0, len(images), step):
            yield Batch(tuple(images[begin : begin + step]), size)


def row_range(offset: Integers, image: int) -> tuple[int, int]:
    """First and one past last row of an image."""
    return int(offset[image]), int(offset[image + 1])
