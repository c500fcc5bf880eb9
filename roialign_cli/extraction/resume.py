"""Going on with a file: what of it still holds, and what has to be computed again.

Done images are kept only if their file is the one that was read, and if their rows still match their checksums.
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
from roialign_cli.inputs.file_versions import has_changed
from roialign_cli.store.check import features_match, tables_match
from roialign_cli.store.checksum import IMAGE_VERSION_TABLES
from roialign_cli.store.layout import Layout, initial_tables
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE, PENDING
from roialign_cli.store.writer import open_writer
from roialign_cli.types import NO_VERSION, FileVersion, Plan

# Attributes that decide how values are rounded, not what they mean.
ROUNDING_ATTRIBUTES = ("created_by", "versions", "kernel")
PLAN_TABLES = ("boxes", "labels", "scores", "ids", "images/name", "images/size")  # tables that a plan has
IMAGES_AT_ONCE = 256  # looked at by one thread
NAMED = 3  # images in a warning

Images = npt.NDArray[np.int64]


def revalidate(output: Path, folder: Path, plan: Plan, layout: Layout, *, strict: bool) -> npt.NDArray[np.bool_]:
    """Mark everything in a file as pending that has to be computed, and return which images [M] are done.

    Reads every done row once if an image is left to compute. Warns of images that are computed again, and of rows that other
    versions or another kernel made; `strict` raises OutputError instead.
    """
    with FeatureFile(output) as file:
        status = file.status
        done = np.flatnonzero(status == DONE)
        changed = _changed(file, folder, done)
        damaged = np.empty(0, np.int64)
        left = status != DONE
        left[list(plan.problems)] = False
        if len(changed) or left.any():  # of a finished file `verify` does it
            damaged = _damaged(file, np.setdiff1d(done, changed))
            _warn_of_versions(output, file.attributes, layout.attributes, strict=strict)
    _warn_of_images(output, plan, changed, "changed since they were read", strict=strict)
    _warn_of_images(output, plan, damaged, "do not match their checksums", strict=strict)
    again = np.union1d(changed, damaged)
    keep: npt.NDArray[np.bool_] = status == DONE
    keep[again] = False
    _reopen(output, plan, layout, np.flatnonzero(~keep & (status != PENDING)))
    return keep


def _changed(file: FeatureFile, folder: Path, done: Images) -> Images:
    """Return the images whose file holds something else than what was read."""
    if not all(name in file.extents for name in IMAGE_VERSION_TABLES):
        return np.empty(0, np.int64)
    sizes, times, digests = (file.dataset(name) for name in IMAGE_VERSION_TABLES)

    def look(image: int) -> bool:
        version = FileVersion(int(sizes[image]), int(times[image]), digests[image].tobytes())
        return has_changed(folder / file.names[image], version)

    return _where(look, done)


def _damaged(file: FeatureFile, done: Images) -> Images:
    """Return the images that do not match their checksums."""
    return _where(lambda image: not (tables_match(file, image, DONE) and features_match(file, image)), done)


def _where(look: Callable[[int], bool], images: Images) -> Images:
    """Return the images for which `look` is true; on threads, as it waits for files or runs without the GIL."""

    def look_at(some: Images) -> list[int]:
        return [image for image in some.tolist() if look(image)]

    parts = np.split(images, range(IMAGES_AT_ONCE, len(images), IMAGES_AT_ONCE))
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as threads:
        return np.array([image for found in threads.map(look_at, parts) for image in found], np.int64)


def _warn_of_versions(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], *, strict: bool) -> None:
    differences = []
    for name in ROUNDING_ATTRIBUTES:
        old, new = theirs.get(name), ours.get(name)
        if name == "versions" and old is not None and new is not None:
            before, now = json.loads(old), json.loads(new)
            differences += [
                f"{key} {before.get(key)} there, {now[key]} here" for key in now if before.get(key) != now[key]
            ]
        elif old != new and old is not None and new is not None:
            differences.append(f"{name.replace('_', ' ')} {old} there, {new} here")
    if differences:
        _warn(path, f"it was begun with other versions: {'; '.join(differences)}; rows may differ by rounding", strict)


def _warn_of_images(path: Path, plan: Plan, images: Images, what: str, *, strict: bool) -> None:
    if len(images):
        names = ", ".join(f'"{plan.table.names[image]}"' for image in images[:NAMED].tolist())
        more = f" and {len(images) - NAMED} more" if len(images) > NAMED else ""
        _warn(path, f"{len(images)} done images {what} and are computed again: {names}{more}", strict)


def _warn(path: Path, text: str, strict: bool) -> None:
    if strict:
        hint = "without --strict the run goes on; --overwrite begins anew"
        raise OutputError("output-strict", f"{path}: expected to go on with it as it was begun, found: {text}", hint)
    warnings.warn(f"{path}: {text}", RuntimeWarning, stacklevel=4)


def _reopen(output: Path, plan: Plan, layout: Layout, images: Images) -> None:
    """Mark images as pending, and write their lines of the tables anew, which may be what is damaged."""
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
