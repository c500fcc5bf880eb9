"""Resume a run: find out what of its file still holds, and what must be computed again.

A done image is kept only if its file is the one that was read, and if its rows still match their checksums.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError
from roialign_cli.inputs.images import ImageSet
from roialign_cli.inputs.images.file import has_changed
from roialign_cli.store.check import features_match, tables_match
from roialign_cli.store.checksum import IMAGE_VERSION_TABLES
from roialign_cli.store.layout import Layout, initial_tables
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE, PENDING
from roialign_cli.store.writer import open_writer
from roialign_cli.types import NO_VERSION, FileVersion, Plan

# Attributes that decide how values are rounded, not what they mean.
ROUNDING_ATTRIBUTES = ("created_by", "versions", "kernel")
# Tables that come from the plan.
PLAN_TABLES = ("boxes", "labels", "scores", "ids", "rotated", "points", "images/name", "images/size")
IMAGES_PER_TASK = 256  # images that one thread checks
MAX_NAMED_IMAGES = 3  # images that a warning names

Images = npt.NDArray[np.int64]


def revalidate(output: Path, images: ImageSet, plan: Plan, layout: Layout, *, strict: bool) -> npt.NDArray[np.bool_]:
    """Mark all images of a file that must be computed as pending, and return which images [M] are done.

    Every done row is read once if any image is left to compute. Warns about images that are computed again, and about rows
    that other versions or another kernel made; with `strict` raises OutputError instead.
    """
    with FeatureFile(output) as file:
        status = file.status
        done = np.flatnonzero(status == DONE)
        changed = changed_images(file, images, done)
        damaged = np.empty(0, np.int64)
        pending = status != DONE
        pending[list(plan.problems)] = False
        if len(changed) or pending.any():  # `verify` checks a finished file
            damaged = _damaged(file, np.setdiff1d(done, changed))
            _warn_of_versions(output, file.attributes, layout.attributes, strict=strict)
    _warn_of_images(output, plan, changed, "changed since they were read", strict=strict)
    _warn_of_images(output, plan, damaged, "do not match their checksums", strict=strict)
    stale = np.union1d(changed, damaged)
    keep: npt.NDArray[np.bool_] = status == DONE
    keep[stale] = False
    _reopen(output, plan, layout, np.flatnonzero(~keep & (status != PENDING)))
    return keep


def changed_images(file: FeatureFile, images: ImageSet, done: Images) -> Images:
    """Return those of the done images whose file no longer holds what was read."""
    if not all(name in file.extents for name in IMAGE_VERSION_TABLES):
        return np.empty(0, np.int64)
    sizes, times, digests = (file.dataset(name) for name in IMAGE_VERSION_TABLES)

    def is_changed(image: int) -> bool:
        version = FileVersion(int(sizes[image]), int(times[image]), digests[image].tobytes())
        return has_changed(images.file(file.names[image]), version)

    return _select(is_changed, done)


def _damaged(file: FeatureFile, done: Images) -> Images:
    """Return the images that do not match their checksums."""
    return _select(lambda image: not (tables_match(file, image, DONE) and features_match(file, image)), done)


def _select(check: Callable[[int], bool], images: Images) -> Images:
    """Return the images for which `check` is true; runs on threads, since a check waits for files or releases the GIL."""

    def select(block: Images) -> list[int]:
        return [image for image in block.tolist() if check(image)]

    blocks = np.split(images, range(IMAGES_PER_TASK, len(images), IMAGES_PER_TASK))
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as threads:
        return np.array([image for found in threads.map(select, blocks) for image in found], np.int64)


def _warn_of_versions(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], *, strict: bool) -> None:
    """Warn if the file was made by other versions or another kernel, from its attributes and those of this run."""
    differences = version_differences(theirs, ours)
    if differences:
        _warn(
            path, f"the run started with other versions: {'; '.join(differences)}; rows may differ by rounding", strict
        )


def version_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return what differs in the versions and the kernel that made a file, from its attributes and those of this run."""
    differences = []
    for name in ROUNDING_ATTRIBUTES:
        old, new = theirs.get(name), ours.get(name)
        if name == "versions" and old is not None and new is not None:
            before, now = json.loads(old), json.loads(new)
            differences += [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
        elif old != new and old is not None and new is not None:
            differences.append(f"{name.replace('_', ' ')} was {old}, is {new}")
    return differences


def _warn_of_images(path: Path, plan: Plan, images: Images, what: str, *, strict: bool) -> None:
    """Warn that images are computed again, naming the first ones."""
    if len(images):
        names = ", ".join(f'"{plan.table.names[image]}"' for image in images[:MAX_NAMED_IMAGES].tolist())
        more = f" and {len(images) - MAX_NAMED_IMAGES} more" if len(images) > MAX_NAMED_IMAGES else ""
        _warn(path, f"{len(images)} done images {what} and are computed again: {names}{more}", strict)


def _warn(path: Path, text: str, strict: bool) -> None:
    if strict:
        hint = "without --strict the run resumes; --overwrite starts again"
        raise OutputError(
            "output-strict", f"{path}: expected nothing to have changed since the run started, found: {text}", hint
        )
    warnings.warn(f"{path}: {text}", RuntimeWarning, stacklevel=4)


def _reopen(output: Path, plan: Plan, layout: Layout, images: Images) -> None:
    """Mark images as pending, and write their lines of the tables again, which may be the damaged part."""
    if not len(images):
        return
    tables = {name: values for name, (_, values) in initial_tables(plan, layout).items() if name in PLAN_TABLES}
    with open_writer(output) as writer:
        writer.reopen(images)
        for image in images.tolist():
            writer.version(image, NO_VERSION)
            first, stop = plan.table.offset[image : image + 2].tolist()
            for name, values in tables.items():
                begin, end = (image, image + 1) if name.startswith("images/") else (first, stop)
                writer.rows(name, begin, values[begin:end].astype(writer.extents[name].raw_dtype))
