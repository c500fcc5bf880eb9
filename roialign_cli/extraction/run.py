"""extract(): read and check everything, lay the file out whole, fill it, say what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roialign_cli import config
from roialign_cli.extraction.job import Job, prepare_job
from roialign_cli.extraction.plan import plan_run
from roialign_cli.extraction.processes import fill_in_processes
from roialign_cli.extraction.progress import ProgressTracker
from roialign_cli.extraction.resume import revalidate
from roialign_cli.extraction.shards import parse_shard
from roialign_cli.extraction.worker import BatchWorker, batches_left, record_known_outcomes
from roialign_cli.inputs.images import limit_pixels
from roialign_cli.regions.values import ValueReport
from roialign_cli.store.output import locked, open_output
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE, FAILED, PENDING
from roialign_cli.system import allocator
from roialign_cli.types import Progress, Summary


def extract(
    images: str | Path,
    boxes: str | Path | None,
    output: str | Path,
    *,
    shard: str | None = None,
    config_name: str | None = None,
    overwrite: bool = False,
    strict: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Summary:
    """Extract the region features of every box into a feature file; the same call goes on where a former one ended.

    Args:
        images: folder of images.
        boxes: box file or folder of annotations; None with `grid`.
        output: the feature file to make.
        shard: `I/N`, to do one of N parts into a file of its own, `auto` or `auto/N`; see `sharding.parse_shard`.
        config_name: a named configuration or the path of a YAML file.
        overwrite: replace an existing output.
        strict: refuse to go on with a file of other versions, or whose images have changed, instead of warning.
        on_progress: called after each batch.
        should_stop: asked before each batch; True ends the run early, resumable.
        **settings: fields of `Settings`, in any form the command line takes.

    Raises:
        RoialignError: see the subclasses in `errors`; what is marked done in the file stays valid.
    """
    chosen = config.load(config_name, settings)
    part = parse_shard(shard) if shard else None
    with limit_pixels(chosen.max_pixels):
        plan = plan_run(Path(images), None if boxes is None else Path(boxes), Path(output), chosen)
        job = prepare_job(plan, Path(images), Path(output), chosen, part)
        return run_job(job, overwrite=overwrite, strict=strict, on_progress=on_progress, should_stop=should_stop)


def run_job(
    job: Job,
    *,
    overwrite: bool,
    strict: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    patience: float = 0.0,
) -> Summary:
    """Fill the output of a job, or what is missing of it; where another run has it, wait for so many seconds."""
    started = time.monotonic()
    with locked(job.output, patience), allocator.retain_freed_memory():
        status = open_output(job.output, job.plan, job.layout, overwrite=overwrite)
        done = status == DONE
        if (status != PENDING).any():
            done = revalidate(job.output, job.folder, job.plan, job.layout, strict=strict)
        finished_before, flaws = bool(done.all()), ValueReport()
        if not finished_before:
            tally = ProgressTracker(job, done, on_progress)
            record_known_outcomes(job, tally)
            flaws = _fill(job, tally, should_stop)
    return _summarise(job, flaws, finished_before, time.monotonic() - started)


def _fill(job: Job, tally: ProgressTracker, should_stop: Callable[[], bool]) -> ValueReport:
    """Fill what is not settled, in this process or in several."""
    if len(job.devices) > 1:
        return fill_in_processes(job, tally, should_stop)
    done = tally.settled.copy()
    filling = BatchWorker(job, job.devices[0], done, tally.settle)
    filling.fill(batches_left(job, done), should_stop)
    return filling.flaws


def _summarise(job: Job, flaws: ValueReport, finished_before: bool, seconds: float) -> Summary:
    plan = job.plan
    with FeatureFile(job.output) as file:
        status, failures = file.status, file.errors
    done, failed = int((status == DONE).sum()), int((status == FAILED).sum())
    return Summary.of(
        plan,
        output=str(job.output),
        done=done,
        failed=failed,
        nonfinite_values=flaws.not_finite,
        saturated_values=flaws.saturated,
        bytes=job.layout.feature_bytes(plan.rows),
        seconds=round(seconds, 3),
        already_finished=finished_before,
        features={layer: (plan.rows, *shape) for layer, shape in job.layout.layers.items()},
        failures=failures,
    )
