"""Print what a run of `roialign extract` would do, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from roialign_cli.config import Settings
from roialign_cli.errors import ExitCode

if TYPE_CHECKING:
    from roialign_cli.extraction.job import Job
    from roialign_cli.types import Plan, Summary


def finish(summary: Summary, *, as_json: bool) -> None:
    """Print the summary of a run, and exit with its code."""
    from roialign_cli.cli.console import print_json

    if as_json:
        print_json(asdict(summary))
    else:
        _print_summary(summary)
    if summary.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if summary.failed:
        raise typer.Exit(ExitCode.IMAGES_FAILED)


def warn_of_plan(plan: Plan, settings: Settings) -> None:
    """Print notes on the boxes; warn about images that cannot be read, and about boxes outside or without area."""
    from roialign_cli.cli.console import pluralise, print_notes, stderr
    from roialign_cli.inputs.survey import suspicions

    print_notes(plan.table.notes)
    for text in () if settings.detect else suspicions(plan):
        stderr.print(f"warning: {text}", highlight=False)
    clip = ", clipped" if settings.clip else "; --clip clips"
    if settings.region == "rotated":  # rotated boxes are never clipped
        clip = ""
    for number, noun, text in (
        (len(plan.problems), "image", "cannot be read; recorded as failed"),
        (plan.outside_boxes, "box", f"outside the image in part or whole{clip}"),
        (plan.empty_boxes, "box", "without area"),
    ):
        if number:
            stderr.print(f"warning: {pluralise(number, noun)} {text}", highlight=False)


def print_plan(job: Job, reuse: list[Path], *, as_json: bool) -> None:
    """Print what a run would write, and what it would take over."""
    from roialign_cli.cli.console import human_bytes, key_value_table, print_json, stdout
    from roialign_cli.extraction.reuse import open_reuse

    taken = None
    if reuse:
        with open_reuse(reuse, job) as found:
            taken = found.taken()
    plan, size = job.plan, job.layout.feature_bytes(job.plan.rows)
    if as_json:
        shapes = {layer: (plan.rows, *shape) for layer, shape in job.layout.layers.items()}
        print_json({
            "images": plan.images, "unreadable_images": len(plan.problems), "unused_images": plan.unused_images,
            "boxes": plan.rows, "outside_boxes": plan.outside_boxes, "empty_boxes": plan.empty_boxes,
            "features": shapes, "bytes": size, "free_bytes": job.free_bytes,
            **({} if taken is None else {
                "reused_images": taken.images, "reused_boxes": taken.boxes, "computed": dict(taken.reasons),
            }),
        })  # fmt: skip
        return
    rows = [
        ("images", f"{plan.images}, {len(plan.problems)} unreadable; {plan.unused_images} other files are not used"),
        (
            "boxes",
            f"{plan.rows} at most, {job.settings.max_boxes} per image"
            if job.settings.detect
            else f"{plan.rows}; {plan.outside_boxes} reach outside of their image, {plan.empty_boxes} are empty",
        ),
        *((f"layer {layer}", str([plan.rows, *shape])) for layer, shape in job.layout.layers.items()),
        ("size", f"{human_bytes(size)} of {human_bytes(job.free_bytes)} free"),
    ]
    if taken is not None:
        rows.append(("reused", _reused(taken.images, taken.boxes, taken.reasons)))
    stdout.print(key_value_table(f"{job.output}: what would be written", rows), highlight=False)


def _reused(images: int, boxes: int, reasons: Mapping[str, int]) -> str:
    """Return in words what is taken over from earlier files, and why images are computed."""
    from roialign_cli.cli.console import pluralise

    computed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    taken = f"{pluralise(images, 'image')} with {pluralise(boxes, 'box')}"
    return f"{taken}; computed: {computed}" if computed else taken


def _print_summary(summary: Summary) -> None:
    """Print what became of a run."""
    from roialign_cli.cli.console import human_bytes, key_value_table, pluralise, print_failures, stdout
    from roialign_cli.regions.values import ValueReport

    title = f"{summary.output}: " + (
        "was finished already, nothing to do" if summary.already_finished
        else "interrupted; the same command resumes" if summary.interrupted
        else f"finished, but {pluralise(summary.failed, 'image')} failed" if summary.failed else "finished"
    )  # fmt: skip
    counts = f"{summary.done} done, {summary.failed} failed" + (
        f", {summary.pending} pending" if summary.pending else ""
    )
    rows = [("images", counts), ("boxes", str(summary.boxes))]
    rows += [(f"layer {layer}", str(list(shape))) for layer, shape in summary.features.items()]
    if summary.computed is not None and not summary.already_finished:
        rows.append(("reused", _reused(summary.reused_images, summary.reused_boxes, summary.computed)))
    rows += [("size", human_bytes(summary.bytes)), ("time", f"{summary.seconds:.1f} s")]
    if report := ValueReport(summary.nonfinite_values, summary.saturated_values):
        rows.append(("warning", f"features have {report}; `roialign inspect` names the images"))
    stdout.print(key_value_table(title, rows), highlight=False)
    print_failures(summary.failures, f"`roialign inspect {summary.output}` lists all")
