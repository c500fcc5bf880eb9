"""Run an extraction: check everything, lay the file out whole, compute what is missing, summarise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from roialign_cli.config import load as load_settings
from roialign_cli.errors import ConfigError, OutputError
from roialign_cli.extraction.compaction import check_finished, check_work_file, compact, count_boxes, work_path
from roialign_cli.extraction.job import Job, pending_batches, prepare_job
from roialign_cli.extraction.outcomes import record_known_outcomes
from roialign_cli.extraction.plan import plan_run
from roialign_cli.extraction.processes import fill_in_processes
from roialign_cli.extraction.progress import ProgressTracker
from roialign_cli.extraction.resume import revalidate
from roialign_cli.extraction.reuse import Taken, copy_rows, open_reuse
from roialign_cli.extraction.shards import parse_shard
from roialign_cli.extraction.worker import BatchWorker
from roialign_cli.inputs.images import limit_pixels, open_images
from roialign_cli.regions.values import ValueReport
from roialign_cli.store.output import locked, open_output
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE, FAILED, PENDING
from roialign_cli.system import allocator
from roialign_cli.system.atomic import check_not_input, publish
from roialign_cli.system.device_queue import open_queue
from roialign_cli.types import Plan, Progress, Summary

UPDATE_SUFFIX = ".update"


def extract(
    images: str | Path,
    boxes: str | Path | None,
    output: str | Path,
    *,
    config: str | Path | None = None,
    config_name: str | None = None,
    shard: str | None = None,
    overwrite: bool = False,
    strict: bool = False,
    reuse: Sequence[str | Path] = (),
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Summary:
    """Extract the region features of every box into a feature file; the same call resumes an interrupted run.

    Args:
        images: folder of images; also an image, a pattern, a list of paths, or zip and tar archives.
        boxes: box file or folder of annotations; None with `grid` or `detect`.
        output: the feature file to make.
        config: a named configuration or the path of a YAML file.
        config_name: an older name of `config`.
        shard: `I/N` extracts part I of N into a file of its own; also `auto` or `auto/N`, see `shards.parse_shard`.
        overwrite: replace an existing output.
        strict: raise instead of warning if other versions began the file, or if its images have changed.
        reuse: earlier feature files from which images that are the same, with the same boxes, are taken over.
        on_progress: called after each image.
        should_stop: called before each batch; True ends the run early, and it can be resumed.
        **settings: fields of `config.Settings`, in any form that the command line accepts.

    Returns:
        The summary that the command line prints.

    Raises:
        RoialignError: see the subclasses in `errors`; what is marked done in the file stays valid.
    """
    if config is not None and config_name is not None:
        raise ConfigError("usage", "extract: expected config or config_name, found both")
    named = config_name if config is None else str(config)
    chosen = load_settings(named, settings)
    part = parse_shard(shard) if shard else None
    with limit_pixels(chosen.max_pixels):
        image_set = open_images(images)
        plan = plan_run(image_set, None if boxes is None else Path(boxes), Path(output), chosen)
        job = prepare_job(plan, image_set, Path(output), chosen, part)
        return run_job(
            job,
            overwrite=overwrite,
            strict=strict,
            reuse=[Path(path) for path in reuse],
            on_progress=on_progress,
            should_stop=should_stop,
        )


def run_job(
    job: Job,
    *,
    overwrite: bool,
    strict: bool = False,
    reuse: Sequence[Path] = (),
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    patience: float = 0.0,
) -> Summary:
    """Compute what is missing of a job's output; wait up to `patience` seconds for another run that holds it.

    What earlier files, `reuse`, hold of the same images and boxes is taken over first.
    """
    fill = partial(_fill, overwrite=overwrite, strict=strict, on_progress=on_progress, should_stop=should_stop)
    if job.backbone.detector is None:
        return fill(job, reuse=reuse, patience=patience)
    if reuse:
        raise ConfigError("config-value", "reuse: expected none with detect, found an earlier file")
    return _detect(job, fill, overwrite=overwrite, patience=patience)


def _detect(job: Job, fill: Callable[[Job], Summary], *, overwrite: bool, patience: float) -> Summary:
    """Fill a work file of a job whose boxes are found on the way, and make the output from it; see `compaction`."""
    started = time.monotonic()
    work = work_path(job.output)
    with locked(job.output, patience):
        check_work_file(work)  # which may be removed or replaced
        if job.output.exists() and not overwrite:
            return _summarise(job, check_finished(job), ValueReport(), True, time.monotonic() - started)
        summary = fill(replace(job, output=work))
        if not summary.finished:
            boxes = int(count_boxes(work).sum())
            shapes = {layer: (boxes, *shape) for layer, shape in job.layout.layers.items()}
            size = job.layout.feature_bytes(boxes)
            return replace(summary, output=str(job.output), boxes=boxes, bytes=size, features=shapes)
        report = ValueReport(summary.nonfinite_values, summary.saturated_values)
        return _summarise(job, compact(job, work), report, False, time.monotonic() - started)


def _fill(
    job: Job,
    *,
    overwrite: bool,
    strict: bool,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    reuse: Sequence[Path] = (),
    patience: float = 0.0,
) -> Summary:
    """Lay out a job's file, or open it, and compute what is missing."""
    started = time.monotonic()
    check_not_input(job.output, reuse)
    with locked(job.output, patience), allocator.retain_freed_memory():
        is_new = overwrite or not job.output.exists()
        status = open_output(job.output, job.plan, job.layout, overwrite=overwrite)
        done = status == DONE
        if (status != PENDING).any():
            done = revalidate(job.output, job.images, job.plan, job.layout, strict=strict)
        report, taken = ValueReport(), Taken()
        if not done.all():
            tracker = ProgressTracker(job, done, on_progress)
            record_known_outcomes(job, tracker)
            if reuse:
                with open_reuse(reuse, job) as found:
                    taken = copy_rows(job, found, tracker.finished, tracker.mark_finished)
            report = _compute(job, tracker, should_stop)
    seconds = time.monotonic() - started
    return replace(
        _summarise(job, job.plan, report, bool(done.all()) and not is_new, seconds),
        reused_images=taken.images, reused_boxes=taken.boxes, computed=dict(taken.reasons) if reuse else None,
    )  # fmt: skip


def run_update(
    job: Job,
    path: Path,
    *,
    strict: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Run a job whose output is `update_path(path)`, take over what the file at `path` holds, and replace it at the end.

    An update that is interrupted or killed leaves the file as it was; the same call goes on.
    """
    with locked(path):
        with FeatureFile(path) as file:
            if len(file.parts) > 1:
                message = f"{path}: expected one file to update, found {len(file.parts)} that are linked"
                raise OutputError("update-linked", message, "merge them into one file first")
        options: dict[str, Any] = {
            "strict": strict, "reuse": [path], "on_progress": on_progress, "should_stop": should_stop,
        }  # fmt: skip
        try:
            summary = run_job(job, overwrite=False, **options)
        except OutputError as error:
            if error.reference != "output-mismatch":
                raise
            summary = run_job(job, overwrite=True, **options)  # what an update with other boxes or settings has left
        if summary.finished:
            try:
                publish(job.output, path)
            except OSError as error:
                raise OutputError("output-write", f"{path}: cannot be replaced: {error.strerror}") from None
    return replace(summary, output=str(path))


def update_path(path: Path) -> Path:
    """Return where an update of a file is written until it is complete. Raises OutputError if there is no file."""
    if not path.is_file():
        raise OutputError(
            "file-missing", f"{path}: expected a feature file to update, found none", "extract it as a new file first"
        )
    return path.with_name(path.name + UPDATE_SUFFIX)


def _compute(job: Job, tracker: ProgressTracker, should_stop: Callable[[], bool]) -> ValueReport:
    """Compute the images that are not finished, in this process or in several."""
    if len(job.devices) > 1:
        return fill_in_processes(job, tracker, should_stop)
    done = tracker.finished.copy()
    worker = BatchWorker(job, open_queue(job.devices[0]), done, tracker.mark_finished)
    worker.run(pending_batches(job, done), should_stop)
    return worker.report


def _summarise(job: Job, plan: Plan, report: ValueReport, finished_before: bool, seconds: float) -> Summary:
    """Return the summary of a run over a plan from the statuses in its file."""
    with FeatureFile(job.output) as file:
        status, failures = file.status, file.errors
    done, failed = int((status == DONE).sum()), int((status == FAILED).sum())
    return Summary.of(
        plan,
        output=str(job.output),
        done=done,
        failed=failed,
        nonfinite_values=report.not_finite,
        saturated_values=report.saturated,
        bytes=job.layout.feature_bytes(plan.rows),
        seconds=round(seconds, 3),
        already_finished=finished_before,
        features={layer: (plan.rows, *shape) for layer, shape in job.layout.layers.items()},
        failures=failures,
    )
