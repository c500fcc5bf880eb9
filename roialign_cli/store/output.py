"""Whose file is it: one writer at a time, a run of the same configuration goes on, any other is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError
from roialign_cli.store.layout import Layout, check_space, create_file
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import PENDING
from roialign_cli.types import Plan

# Attributes that a run must share with the file it goes on with; the latter three are of shards.
IDENTITY = ("config", "weights_sha256", "boxes_sha256", "table_sha256", "plan_sha256", "shard", "shards")


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `<output>.lock`; OutputError if another run does, for longer than so many seconds."""
    lock = filelock.FileLock(f"{path}.lock", timeout=patience)
    try:
        lock.acquire()
    except filelock.Timeout:
        message = f"{path}: expected no other run on this output, found its lock held"
        raise OutputError("output-locked", message, "wait for that run, or choose another -o") from None
    except OSError as error:
        raise OutputError("output-permission", f"{path}.lock: cannot be created: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):  # some systems refuse to remove a file that is held; then it stays, which does no harm
            Path(f"{path}.lock").unlink()
        lock.release()


def open_output(path: Path, plan: Plan, layout: Layout, *, overwrite: bool) -> npt.NDArray[np.uint8]:
    """Lay the file out, or find it laid out by a run of the same configuration; returns the status of each image."""
    if overwrite or not path.exists():
        check_space(path, layout.feature_bytes(plan.rows))
        create_file(path, plan, layout)
        return np.full(plan.images, PENDING, np.uint8)
    with FeatureFile(path) as file:
        rows = _row_differences(file, plan)
        keys = [key for key in IDENTITY if not (rows and key == "table_sha256")]
        differences = [
            line for key in keys for line in _differences(key, file.attributes.get(key), layout.attributes.get(key))
        ]
        differences += rows
        if differences:
            raise OutputError(
                "output-mismatch",
                f"{path}: expected the output of this configuration, found another: {'; '.join(differences)}",
                "choose another -o, or --overwrite",
            )
        return file.status


def _row_differences(file: FeatureFile, plan: Plan) -> list[str]:
    """Return the first image that a file and a plan do not share, or whose number of boxes they do not."""
    table = plan.table
    if len(file.names) != plan.images:
        return [f"{len(file.names)} images there, {plan.images} here"]
    for i, (theirs, ours) in enumerate(zip(file.names, table.names, strict=True)):
        if theirs != ours:
            return [f'image {i} is "{theirs}" there, "{ours}" here']
    different = np.flatnonzero(np.diff(file.offset) != np.diff(table.offset))
    if different.size:
        i = int(different[0])
        there, here = (int(offset[i + 1] - offset[i]) for offset in (file.offset, table.offset))
        return [f'"{file.names[i]}" has {there} boxes there, {here} here']
    return []


def _differences(key: str, theirs: Any, ours: Any) -> list[str]:
    """What differs, setting by setting for the configuration."""
    if theirs == ours:
        return []
    if key == "table_sha256":
        return ["its boxes, labels, scores or ids are others"]
    if key != "config":
        return [f"{key} is {theirs} there, {ours} here"]
    old, new = json.loads(theirs or "{}"), json.loads(ours)
    names = [*new, *(name for name in old if name not in new)]
    return [
        f"{name} is {old.get(name)} there, {new.get(name)} here" for name in names if old.get(name) != new.get(name)
    ]
