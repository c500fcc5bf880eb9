"""Record in the file what became of each image: done, or failed with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from roialign_cli.extraction.job import Job
from roialign_cli.extraction.progress import ProgressTracker
from roialign_cli.inputs.images import ImageError
from roialign_cli.regions.values import ValueReport
from roialign_cli.store.writer import FeatureWriter, open_writer
from roialign_cli.types import FileVersion, Plan


class OutcomeRecorder:
    """Record outcomes of images that are not done yet; images that are done keep their outcome.

    `done` [M] is shared with the caller: an image that fails here is set, so that it is not recorded twice.
    """

    def __init__(
        self, job: Job, writer: FeatureWriter, done: npt.NDArray[np.bool_], mark_finished: Callable[[int], None]
    ) -> None:
        self._job = job
        self._writer = writer
        self._done = done
        self._mark_finished = mark_finished

    def done(self, image: int, version: FileVersion, report: ValueReport) -> None:
        """Record an image as done, or as failed if values that are not finite count as an error."""
        if self._done[image]:
            return
        if report.not_finite and self._job.settings.on_nonfinite == "error":
            self.failed(image, ImageError("features-nonfinite", f"its features have {report}", "--on-nonfinite keep"))
            return
        self._writer.version(image, version)
        _write_done(self._job, self._writer, image, str(report))
        self._mark_finished(image)

    def failed(self, image: int, error: ImageError) -> None:
        """Record an image as failed, or raise its error with --on-error stop."""
        if self._job.settings.on_error == "stop":
            raise error.with_name(self._job.plan.table.names[image])
        if not self._done[image]:
            self._writer.failed(image, error.message)
            self._mark_finished(image)
            self._done[image] = True


def known_outcomes(plan: Plan) -> Iterator[tuple[int, str | None]]:
    """Yield images whose outcome needs no computation: those without boxes are done (None), unreadable ones have failed.

    The text is the reason of a failure.
    """
    for image in np.flatnonzero(np.diff(plan.table.offset) == 0).tolist():
        if image not in plan.problems:
            yield image, None
    yield from plan.problems.items()


def record_known_outcomes(job: Job, tracker: ProgressTracker) -> None:
    """Record the outcomes that need no computation, of images that are not finished yet."""
    outcomes = [(image, problem) for image, problem in known_outcomes(job.plan) if not tracker.finished[image]]
    if not outcomes:
        return
    with open_writer(job.output) as writer:
        for image, problem in outcomes:
            if problem is None:
                _write_done(job, writer, image)
            else:
                writer.failed(image, problem)
            tracker.mark_finished(image)


def _write_done(job: Job, writer: FeatureWriter, image: int, note: str = "") -> None:
    """Mark an image as done, and write its size and what depends on it, which an earlier run may not have known."""
    writer.rows("images/size", image, job.plan.sizes[image : image + 1])
    if job.plan.boxes_depend_on_size:
        first, stop = job.plan.table.offset[image : image + 2].tolist()
        for name in ("boxes", "rotated", "points"):
            if name in writer.extents:
                writer.rows(name, first, getattr(job.plan.table, name)[first:stop])
    writer.done(image, note)
