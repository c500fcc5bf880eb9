"""Which images of a run are done or failed, as progress."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from roialign_cli.extraction.job import Job
from roialign_cli.types import Progress


class ProgressTracker:
    """Which images are settled, done or failed; told as progress."""

    def __init__(self, job: Job, done: npt.NDArray[np.bool_], on_progress: Callable[[Progress], None]) -> None:
        self.settled = done.copy()
        self._job = job
        self._on_progress = on_progress
        self._counts = np.diff(job.plan.table.offset)
        self._images, self._boxes = int(done.sum()), int(self._counts[done].sum())

    def settle(self, image: int) -> None:
        """An image is done or failed; saying so twice changes nothing."""
        if self.settled[image]:
            return
        self.settled[image] = True
        self._images += 1
        self._boxes += int(self._counts[image])
        plan, stored = self._job.plan, self._job.layout.feature_bytes(self._boxes)
        self._on_progress(Progress(self._images, plan.images, self._boxes, plan.rows, stored))
