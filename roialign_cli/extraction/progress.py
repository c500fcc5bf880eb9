"""Track which images of a run are finished, and report the progress."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from roialign_cli.extraction.job import Job
from roialign_cli.types import Progress


class ProgressTracker:
    """Track which images [M] are finished, that is done or failed, and report each step to a callback."""

    def __init__(self, job: Job, done: npt.NDArray[np.bool_], on_progress: Callable[[Progress], None]) -> None:
        self.finished = done.copy()
        self._job = job
        self._on_progress = on_progress
        # How many boxes a detector finds is not known: its plan has room for the most.
        self._box_counts = np.diff(job.plan.table.offset) * (not job.layout.sparse)
        self._all_boxes = int(self._box_counts.sum())
        self._images, self._boxes = int(done.sum()), int(self._box_counts[done].sum())

    def mark_finished(self, image: int) -> None:
        """Count an image as finished; an image that is finished already changes nothing."""
        if self.finished[image]:
            return
        self.finished[image] = True
        self._images += 1
        self._boxes += int(self._box_counts[image])
        plan, stored = self._job.plan, self._job.layout.feature_bytes(self._boxes)
        self._on_progress(Progress(self._images, plan.images, self._boxes, self._all_boxes, stored))
