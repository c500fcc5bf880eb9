"""Make the plan of a run from boxes and an image folder: which images, which rows, how big. Needs no torch."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from roialign_cli.arrays import Floats, Integers, PackedNames
from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError, InputError
from roialign_cli.inputs.boxes import read_boxes
from roialign_cli.inputs.boxes.common import as_boxes
from roialign_cli.inputs.boxes.names import ImageNames
from roialign_cli.inputs.boxes.outside import REFUSED_SHARE, far_outside, outside_error
from roialign_cli.inputs.boxes.regions import in_pixels, resolve
from roialign_cli.inputs.boxes.room import make_room
from roialign_cli.inputs.images import IMAGE_MISSING, ImageError, ImageSet, read_size, timeout_error
from roialign_cli.store.identity import table_sha256
from roialign_cli.store.layout import check_space
from roialign_cli.system import allocator
from roialign_cli.system.file_threads import FileThreads
from roialign_cli.types import BoxTable, Plan

PREFETCH_HEADERS = 1024  # image headers that are read ahead
IMAGES_PER_BLOCK = 1 << 16  # images whose boxes are fitted at a time
MAX_SUGGESTED_NAMES = 10_000  # images among which a similar name is searched


def plan_run(images: ImageSet, boxes: Path | None, output: Path, settings: Settings) -> Plan:
    """Read boxes and check everything that can be checked without the backbone, so that mistakes are reported at once.

    With `detect` the plan has room for the boxes that the run finds.
    """
    check_space(output, 0)
    allocator.restore_mmap_threshold()
    if not settings.detect:
        return make_plan(images, read_boxes(boxes, images, settings), settings)
    if boxes is not None:
        hint = f"leave out {boxes}, or --detect"
        raise ConfigError("config-value", f"--detect: expected no box file beside it, found {boxes}", hint)
    table = make_room(settings.max_boxes, ImageNames(images))
    return replace(make_plan(images, table, settings), empty_boxes=0)  # rows without a box are not counted


def make_plan(images: ImageSet, table: BoxTable, settings: Settings) -> Plan:
    """Look up every image, read its size from the box file or its header, and check its boxes against it.

    A size that the box file states is believed until the image is decoded. Where boxes are clipped or relative they depend
    on the size, so headers are read. Rotated boxes are never clipped.

    Images that are missing or unreadable become `problems`; with on_error `stop` the first one is raised. If no image of
    the box file exists, or if most boxes lie outside their images, InputError is raised in any case.
    """
    clip, on_error = settings.clip, settings.on_error
    listing = images.listing
    exists = listing.has(table.names)
    used = int(exists.sum())
    for i in np.flatnonzero(~exists).tolist():  # an unusual suffix, or a file system that ignores case
        exists[i] = images.file(table.names[i]).exists()
    missing = np.flatnonzero(~exists).tolist()
    if missing and (on_error == "stop" or len(missing) == len(table.names)):
        raise _missing(images, table.names[missing[0]], len(missing), len(table.names))

    boxes_depend_on_size = clip or table.relative_boxes is not None
    if table.sizes is not None and not boxes_depend_on_size:  # no need to open every image
        problems = dict.fromkeys(missing, IMAGE_MISSING)
        sizes = table.sizes
        if missing:
            sizes = sizes.copy()
            sizes[missing] = 0
    else:
        sizes, problems = _read_sizes(images, table.names, on_error, settings.image_timeout)
    read = table
    if settings.region != "box":
        table = resolve(table.source, in_pixels(table, sizes), sizes, settings)
    boxes, outside, far, empty = _fit_boxes(table, sizes, clip=clip and table.rotated is None)
    if far > REFUSED_SHARE * len(boxes) and not settings.allow_outside:
        raise outside_error(replace(table, boxes=_in_pixels(table, sizes)), sizes, far)
    return Plan(
        table=replace(table, boxes=boxes, relative_boxes=None, sizes=None),
        sizes=sizes,
        problems=problems,
        unused_images=len(listing) - used,
        outside_boxes=outside,
        empty_boxes=empty,
        boxes_depend_on_size=boxes_depend_on_size,
        table_sha256=table_sha256(read),
    )


def _fit_boxes(table: BoxTable, sizes: Integers, *, clip: bool) -> tuple[Floats, int, int, int]:
    """Return boxes [N, 4] in pixels, clipped with `clip`; how many reach outside their image, or far so; how many are empty.

    Images are processed in blocks, since intermediate results are larger than the boxes themselves.
    """
    boxes = table.boxes if table.relative_boxes is None and not clip else table.boxes.copy()
    outside = far = empty = 0
    for first in range(0, len(sizes), IMAGES_PER_BLOCK):
        offset = table.offset[first : first + IMAGES_PER_BLOCK + 1]
        rows = slice(int(offset[0]), int(offset[-1]))
        known = np.repeat(sizes[first : first + IMAGES_PER_BLOCK, ::-1], np.diff(offset), axis=0)  # (width, height)
        if table.relative_boxes is not None:
            boxes[rows] = as_boxes(table.relative_boxes[rows] * np.concatenate([known, known], axis=1))
        some = boxes[rows]
        readable = known.min(axis=1, initial=1) > 0
        outside += int((readable & ((some[:, :2] < 0) | (some[:, 2:] > known)).any(axis=1)).sum())
        far += int((readable & far_outside(some, known)).sum())
        if clip:
            limits = np.where(readable[:, None], known, np.inf)
            boxes[rows] = np.clip(some, 0, np.concatenate([limits, limits], axis=1))
        empty += int((readable[:, None] & (boxes[rows, 2:] <= boxes[rows, :2])).any(axis=1).sum())
    return boxes, outside, far, empty


def _in_pixels(table: BoxTable, sizes: Integers) -> Floats:
    """Return boxes [N, 4] in pixels, not clipped."""
    if table.relative_boxes is None:
        return table.boxes
    known = np.repeat(sizes[:, ::-1], np.diff(table.offset), axis=0)
    return as_boxes(table.relative_boxes * np.concatenate([known, known], axis=1))


def _read_sizes(images: ImageSet, names: PackedNames, on_error: str, timeout: float) -> tuple[Integers, dict[int, str]]:
    """Return (height, width) of every image [M, 2] from its header, zeros for images with a problem; and the problems."""
    threads = FileThreads(read_size, min(32, 4 * (os.cpu_count() or 1)), timeout)
    sizes, problems = np.zeros((len(names), 2), np.int64), {}
    try:
        for i, result in enumerate(threads.map((images.file(name) for name in names), PREFETCH_HEADERS)):
            try:
                sizes[i] = result()
            except (ImageError, TimeoutError) as error:
                problem = error if isinstance(error, ImageError) else timeout_error(timeout)
                if on_error == "stop":
                    raise problem.with_name(names[i]) from None
                problems[i] = problem.message
    finally:
        threads.close()
    return sizes, problems


def _missing(images: ImageSet, name: str, missing: int, total: int) -> InputError:
    """Return the error of a missing image, with the nearest name as a hint."""
    listed = sorted(images.names())
    if not listed:
        return InputError("images-empty", f"{images.where}: expected images, found none")
    close = difflib.get_close_matches(name, listed[:MAX_SUGGESTED_NAMES], n=1, cutoff=0.6)
    same = [other for other in listed if Path(other).name == Path(name).name]
    nearest = (same or close or [""])[0]
    hint = f'the nearest name there is "{nearest}"' if nearest else f"{len(listed)} images are there"
    count = f"{missing} of {total} images of the box file are not there, the first is"
    return InputError("image-missing", f'{images.where}: {count} "{name}"', hint)
