"""Turn the work file of a run that finds its own boxes into a feature file without empty rows.

The work file has room for the most boxes of each image, so that it can be laid out before anything is found: a run may be
killed and resumed as any other. Its features are sparse, so that rows without a box take no space. At the end the rows with a
box are copied into an ordinary feature file, which appears under its name when it is complete; then the work file is removed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Integers
from roialign_cli.errors import OutputError
from roialign_cli.extraction.job import Job
from roialign_cli.extraction.resume import changed_images
from roialign_cli.inputs.boxes.room import NO_BOX
from roialign_cli.store.check import features_match, tables_match
from roialign_cli.store.layout import check_space, create_file
from roialign_cli.store.output import image_differences, require_same
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE, features_path, open_file
from roialign_cli.store.writer import FeatureWriter, open_writer
from roialign_cli.system.atomic import foreign_file_error, replace_atomically
from roialign_cli.types import FileVersion, Plan

SUFFIX = ".detecting"


def work_path(output: Path) -> Path:
    """Return the path of the work file of an output."""
    return output.with_name(output.name + SUFFIX)


def check_work_file(work: Path) -> None:
    """Raise OutputError if something is in the place of a work file that is none."""
    if work.exists():
        try:
            open_file(work).close()
        except OutputError:
            raise foreign_file_error(work, "something else") from None


def count_boxes(work: Path) -> Integers:
    """Return the number of boxes of each image [M] of a work file; images that are not done have none."""
    with FeatureFile(work) as file:
        found = np.add.reduceat(file.dataset("scores") != NO_BOX, file.offset[:-1], dtype=np.int64)
        return np.where(file.status == DONE, found, 0)


def compact(job: Job, work: Path) -> Plan:
    """Write a job's output from its finished work file, and remove that; return the plan with the boxes that were found.

    Raises OutputError if rows do not match their checksums, or the output cannot be written.
    """
    counts = count_boxes(work)
    with FeatureFile(work) as file:
        plan = _found_plan(job, file, counts)
        layout = replace(job.layout, sparse=False)
        check_space(job.output, layout.feature_bytes(plan.rows))
        with replace_atomically(job.output) as partial:
            create_file(partial, plan, layout)
            errors = file.errors
            with open_writer(partial) as writer:
                for image, (name, status) in enumerate(zip(file.names, file.status.tolist(), strict=True)):
                    if status == DONE:
                        _copy(file, image, plan, writer)
                    else:
                        writer.failed(image, errors[name])
    work.unlink()
    return plan


def check_finished(job: Job) -> Plan:
    """Return the plan of a job whose output is there already, with the boxes that were found; remove its work file.

    Raises OutputError if the output is that of another configuration, or if its images have changed since.
    """
    hint = "choose another -o, or --overwrite to detect again"
    with FeatureFile(job.output) as file:
        require_same(file, job.layout.attributes, image_differences(file, job.plan), hint)
        changed = changed_images(file, job.images, np.flatnonzero(file.status == DONE))
        if len(changed):
            found = f'found {len(changed)} that have changed, the first is "{file.names[int(changed[0])]}"'
            raise OutputError("output-changed", f"{job.output}: expected the images that were read, {found}", hint)
        plan = _plan(job, file, np.arange(len(file.boxes)), file.offset)
    work_path(job.output).unlink(missing_ok=True)
    return plan


def _found_plan(job: Job, file: FeatureFile, counts: Integers) -> Plan:
    """Return the plan of the boxes that were found, given the work file and the number of boxes of each image [M]."""
    rows = np.repeat(file.offset[:-1] - np.cumsum([0, *counts[:-1]]), counts) + np.arange(counts.sum())
    return _plan(job, file, rows, np.cumsum([0, *counts]))


def _plan(job: Job, file: FeatureFile, rows: Integers, offset: Integers) -> Plan:
    """Return the job's plan with some rows of a file as its boxes."""
    detector = job.backbone.detector
    assert detector is not None
    labels: npt.NDArray[Any] | None = None
    if not job.settings.proposals:
        labels = np.array(file.dataset("labels")[rows])
        if detector.categories and labels.dtype.kind == "i":
            labels = np.array(detector.categories)[labels]
    table = replace(
        job.plan.table,
        offset=offset,
        boxes=np.array(file.boxes[rows]),
        labels=labels,
        scores=np.array(file.dataset("scores")[rows]),
    )
    return replace(job.plan, table=table, sizes=file.sizes)


def _copy(file: FeatureFile, image: int, plan: Plan, writer: FeatureWriter) -> None:
    """Copy the features and the outcome of an image that is done from the work file."""
    if not (tables_match(file, image, DONE) and features_match(file, image)):
        message = f'{file.path}: "{file.names[image]}": expected rows that match their checksum, found others'
        raise OutputError("file-damaged", message, "run the same command again, which computes them again")
    first, count = int(plan.table.offset[image]), len(plan.table.boxes[plan.table.rows_of(image)])
    rows = slice(int(file.offset[image]), int(file.offset[image]) + count)
    writer.begin(image)
    if "levels" in writer.extents:
        writer.rows("levels", first, np.array(file.dataset("levels")[rows]))
    for layer in file.layers:
        writer.features(features_path(layer, len(file.layers)), image, first, np.array(file.features(layer)[rows]))
    size, modified, digest = (file.dataset(f"images/{name}")[image] for name in ("file_size", "modified", "sha256"))
    writer.version(image, FileVersion(int(size), int(modified), digest.tobytes()))
    writer.done(image, file.dataset("images/error")[image].decode("utf-8", "replace"))
