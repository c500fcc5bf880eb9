"""Open an output: allow one writer at a time, resume a run of the same configuration, and refuse any other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt

from roialign_cli.config import Settings
from roialign_cli.errors import OutputError
from roialign_cli.store.layout import Layout, check_space, create_file
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import PENDING
from roialign_cli.system.atomic import foreign_file_error
from roialign_cli.types import Plan

# Attributes that a run must share with the file that it resumes; the last three are those of shards.
IDENTITY = (
    "config",
    "weights_sha256",
    "deform_sha256",
    "boxes_sha256",
    "table_sha256",
    "plan_sha256",
    "shard",
    "shards",
)
# How a difference in an attribute that is a hash is reported.
CHANGED = {
    "weights_sha256": "the weights have changed since",
    "deform_sha256": "the head that moves bins has changed since",
    "boxes_sha256": "the box file has changed since",
    "plan_sha256": "images, boxes or sizes of the whole run have changed since",
}


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `<output>.lock`. Raises OutputError if another run holds it for longer than `patience` seconds."""
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
        with suppress(OSError):  # some systems refuse to remove a file that is held; it then stays, which does no harm
            Path(f"{path}.lock").unlink()
        lock.release()


def open_output(path: Path, plan: Plan, layout: Layout, *, overwrite: bool) -> npt.NDArray[np.uint8]:
    """Lay out a file, or open one of the same configuration; return the status of each image [M].

    Raises OutputError naming every difference if the file belongs to another configuration.
    """
    if path.is_symlink() and not path.exists() and not overwrite:
        raise foreign_file_error(path, "a link to nothing")
    if overwrite or not path.exists():
        check_space(path, 0 if layout.sparse else layout.feature_bytes(plan.rows))
        create_file(path, plan, layout)
        return np.full(plan.images, PENDING, np.uint8)
    with FeatureFile(path) as file:
        require_same(file, layout.attributes, _row_differences(file, plan), "choose another -o, or --overwrite")
        return file.status


def require_same(file: FeatureFile, attributes: Mapping[str, Any], differences: list[str], hint: str) -> None:
    """Raise OutputError naming every difference if a file is not of the run that these attributes identify.

    `differences` are those that were found in its rows. They, or other settings, stand for a difference in the hash of rows.
    """
    found = differences
    for key in reversed(IDENTITY):
        if key != "table_sha256" or not (differences or file.attributes.get("config") != attributes.get("config")):
            found = [*_differences(key, file.attributes.get(key), attributes.get(key)), *found]
    if found:
        message = f"{file.path}: expected the output of this configuration, found another: {'; '.join(found)}"
        raise OutputError("output-mismatch", message, hint)


def image_differences(file: FeatureFile, plan: Plan) -> list[str]:
    """Return the first difference between the images of a file and those of a plan."""
    if len(file.names) != plan.images:
        return [f"it has {len(file.names)} images, this run has {plan.images}"]
    for i, (theirs, ours) in enumerate(zip(file.names, plan.table.names, strict=True)):
        if theirs != ours:
            return [f'image {i} is "{theirs}" in it, and "{ours}" in this run']
    return []


def _row_differences(file: FeatureFile, plan: Plan) -> list[str]:
    """Return the first image in which a file and a plan differ, by its name or its number of boxes."""
    if differences := image_differences(file, plan):
        return differences
    table = plan.table
    different = np.flatnonzero(np.diff(file.offset) != np.diff(table.offset))
    if different.size:
        i = int(different[0])
        before, now = (int(offset[i + 1] - offset[i]) for offset in (file.offset, table.offset))
        return [f'"{file.names[i]}" has {before} boxes in it, and {now} in this run']
    return []


def _differences(key: str, theirs: Any, ours: Any) -> list[str]:
    """Return what differs in one attribute; for the configuration, setting by setting."""
    if theirs == ours:
        return []
    if key == "table_sha256":
        return ["boxes, labels, scores, ids or regions have changed"]
    if key in CHANGED:
        return [CHANGED[key]]
    if key != "config":
        return [f"{key} was {theirs}, is {ours}"]
    old, new = json.loads(theirs or "{}"), json.loads(ours)
    names = [*new, *(name for name in old if name not in new)]
    defaults = Settings().identity()  # of settings that did not exist when the file was made

    def before(name: str) -> Any:
        return old[name] if name in old else json.loads(json.dumps(defaults.get(name)))

    return [f"{name} was {before(name)}, is {new.get(name)}" for name in names if before(name) != new.get(name)]
