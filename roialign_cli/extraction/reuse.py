"""Take over the rows of earlier feature files that a run would compute again, with the same result.

An image is taken over if its file holds what the earlier run read, all of its boxes are in the earlier file, and everything
that decides features is the same: backbone, weights and settings. Labels, scores and ids may differ. Any other image is
computed, with all of its boxes.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Integers
from roialign_cli.config import Settings
from roialign_cli.errors import OutputError
from roialign_cli.extraction.job import Job
from roialign_cli.extraction.resume import version_differences
from roialign_cli.inputs.images.file import has_changed
from roialign_cli.store.check import features_match, tables_match
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE, features_path
from roialign_cli.store.writer import open_writer
from roialign_cli.types import FileVersion

# Settings that decide which boxes there are, and not what a box's features are: the boxes themselves are compared.
BOX_SETTINGS = frozenset({
    "clip", "labels", "min_score", "min_size", "max_boxes", "crowd", "grid", "region_missing",
    "detect", "proposals", "nms", "class_agnostic",
})  # fmt: skip
SAME_ATTRIBUTES = ("weights_sha256", "deform_sha256", "centers", "preprocessing")
KEYS = ("boxes", "rotated", "points")  # the tables that say where a region is
COPIED = ("levels", "coverage", "area")  # the tables that a run fills
NEW, IMAGE_CHANGED, NO_VERSION, BOXES_CHANGED, NOT_DONE, DAMAGED, MASKS = (
    "new", "with another image file", "whose image file an earlier file does not identify", "with other boxes",
    "that had failed or were pending", "damaged in the earlier file", "with masks, which files do not hold",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where an image is taken from: which earlier file, its index there, and for each of its rows the one in that file."""

    file: int
    image: int
    rows: Integers
    version: FileVersion


@dataclass(frozen=True)
class Taken:
    """How many images and boxes are taken over, and how many images are computed for which reason."""

    images: int = 0
    boxes: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reuse:
    """What can be taken over: sources by image of the run, and how many images are computed for which reason."""

    files: Sequence[FeatureFile]
    sources: Mapping[int, Source]
    reasons: Mapping[str, int]

    def taken(self) -> Taken:
        """Return what will be taken over if no earlier file is damaged."""
        return Taken(len(self.sources), sum(len(source.rows) for source in self.sources.values()), self.reasons)


@contextmanager
def open_reuse(paths: Sequence[Path], job: Job) -> Iterator[Reuse]:
    """Yield what a job can take over from earlier files, of which later ones win.

    Raises OutputError if a file is not readable, or was made in another way; warns where other versions made it.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(FeatureFile(path)) for path in paths]
        for file in files:
            _check_same(file, job)
        sources: dict[int, Source] = {}
        reasons: Counter[str] = Counter()
        places = [{name: i for i, name in enumerate(file.names)} for file in files]
        statuses = [file.status for file in files]
        counts = np.diff(job.plan.table.offset)
        for image, name in enumerate(job.plan.table.names):
            if image in job.plan.problems or counts[image] == 0:
                continue
            reason = NEW
            for i in reversed(range(len(files))):
                if name not in places[i]:
                    continue
                found = _find(job, files[i], i, image, places[i][name], int(statuses[i][places[i][name]]))
                if isinstance(found, Source):
                    sources[image] = found
                    break
                reason = found if reason == NEW else reason
            else:
                reasons[reason] += 1
        yield Reuse(files, sources, reasons)


def _find(job: Job, file: FeatureFile, number: int, image: int, place: int, status: int) -> Source | str:
    """Return the source of an image in an earlier file, or why it cannot be taken over."""
    if status != DONE:
        return NOT_DONE
    if job.settings.region == "mask":
        return MASKS
    digest = file.dataset("images/sha256")[place].tobytes() if "images/sha256" in file.extents else b""
    if not any(digest):
        return NO_VERSION
    size, modified = (int(file.dataset(f"images/{name}")[place]) for name in ("file_size", "modified"))
    version = FileVersion(size, modified, digest)
    current = job.images.file(job.plan.table.names[image])
    if has_changed(current, version):
        return IMAGE_CHANGED
    rows = _match_rows(job, file, image, place)
    return BOXES_CHANGED if rows is None else Source(number, place, rows, FileVersion(*current.state(), digest))


def _match_rows(job: Job, file: FeatureFile, image: int, place: int) -> Integers | None:
    """Return for each row of an image the row of an earlier file with the same region, or None if one has none."""
    table, earlier, ours = job.plan.table, file.rows_of(place), job.plan.table.rows_of(image)
    theirs: list[npt.NDArray[Any]] = []
    mine: list[npt.NDArray[Any]] = []
    for name in KEYS:
        column = getattr(table, name)
        if (column is None) != (name not in file.extents):
            return None
        if column is not None:
            theirs.append(_as_rows(np.array(file.dataset(name)[earlier])))
            mine.append(_as_rows(column[ours]))
    known = {row.tobytes(): i for i, row in enumerate(np.concatenate(theirs, axis=1))}
    found = [known.get(row.tobytes(), -1) for row in np.concatenate(mine, axis=1)]
    return None if -1 in found else np.array(found, np.int64) + earlier.start


def _as_rows(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return float32 rows [n, k], with zeros of one sign, so that equal numbers have equal bytes."""
    rows: npt.NDArray[np.float32] = values.reshape(len(values), -1).astype(np.float32) + np.float32(0)
    return rows


def _check_same(file: FeatureFile, job: Job) -> None:
    """Raise OutputError if a file's features are not those that the job would compute for the same boxes."""
    theirs, ours = file.settings, json.loads(json.dumps(job.settings.identity()))
    defaults = json.loads(json.dumps(Settings().identity()))  # of settings that did not exist when the file was made
    before = {name: theirs.get(name, defaults.get(name)) for name in ours}
    differences = [
        f"{name} was {before[name]}, is {ours[name]}"
        for name in ours
        if name not in BOX_SETTINGS and before[name] != ours[name]
    ]
    if before["detect"] and ours["head"] == "box":
        differences.append("its vectors are those of proposals")
    for name in SAME_ATTRIBUTES:
        if file.attributes.get(name) != job.layout.attributes.get(name):
            differences.append(f"{name} differs")
    if not differences and file.layers != list(job.layout.layers):
        differences.append(f"layers were {', '.join(file.layers)}")
    if differences:
        expected = "expected features of the same backbone, weights and settings"
        hint = "extract without it, into a new file"
        raise OutputError("reuse-mismatch", f"{file.path}: {expected}, found others: {'; '.join(differences)}", hint)
    others = version_differences(file.attributes, job.layout.attributes)
    if others:
        text = f"{file.path}: made by other versions: {'; '.join(others)}; rows may differ by rounding"
        warnings.warn(text, RuntimeWarning, stacklevel=4)


def copy_rows(job: Job, reuse: Reuse, done: npt.NDArray[np.bool_], mark_finished: Callable[[int], None]) -> Taken:
    """Write the images that can be taken over, and are not done [M] yet, to the output; return what was done.

    Images that are damaged in the earlier file are left to be computed.
    """
    layers = list(job.layout.layers)
    reasons = Counter(reuse.reasons)
    images = boxes = 0
    with open_writer(job.output) as writer:
        for image, source in reuse.sources.items():
            file = reuse.files[source.file]
            if done[image]:
                continue
            if not (tables_match(file, source.image, DONE) and features_match(file, source.image)):
                reasons[DAMAGED] += 1
                continue
            first = int(job.plan.table.offset[image])
            job.plan.sizes[image] = file.sizes[source.image]
            writer.begin(image)
            for name in COPIED:
                if name in writer.extents:
                    writer.rows(name, first, np.array(file.dataset(name)[source.rows]))
            for layer in layers:
                values = np.array(file.features(layer)[source.rows])
                writer.features(features_path(layer, len(layers)), image, first, values)
            writer.version(image, source.version)
            writer.rows("images/size", image, job.plan.sizes[image : image + 1])
            writer.done(image, file.dataset("images/error")[source.image].decode("utf-8", "replace"))
            mark_finished(image)
            images, boxes = images + 1, boxes + len(source.rows)
    return Taken(images, boxes, reasons)
