"""`roialign extract`: the main job."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roialign_cli.cli import options
from roialign_cli.cli.options import CLUSTER, RUN, option
from roialign_cli.config import Settings, load
from roialign_cli.errors import ConfigError, ImagesFailedError
from roialign_cli.system.signals import INTERRUPTED

if TYPE_CHECKING:
    from roialign_cli.extraction.job import Job
    from roialign_cli.types import Plan, Summary

SOME_FAILED = ImagesFailedError.exit_code


def extract(
    images: options.Images,
    boxes: options.Boxes = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Feature file to write.", show_default=False)] = ...,  # type: ignore[assignment]
    config: options.Config = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    layers: options.Layers = None,
    resize: options.Resize = None,
    precision: options.Precision = None,
    compile_: options.Compile = None,
    output_size: options.OutputSize = None,
    sampling_ratio: options.SamplingRatio = None,
    aligned: options.Aligned = None,
    mode: options.Mode = None,
    reduce: options.Reduce = None,
    head: options.Head = None,
    clip: options.Clip = None,
    kernel: options.Kernel = None,
    dtype: options.Dtype = None,
    device: Annotated[
        str | None, option("auto, cpu, cuda, cuda:all or cuda:0,2.", default=options.DEFAULTS.device, panel=RUN)
    ] = None,
    processes: Annotated[
        int | None, option("Processes that share the work.", default="one per device", panel=RUN)
    ] = None,
    batch_size: Annotated[int | None, option("Images of one size at a time.", default="by size", panel=RUN)] = None,
    workers: options.Workers = None,
    boxes_format: options.BoxesFormat = None,
    columns: options.Columns = None,
    classes: options.Classes = None,
    images_json: options.ImagesJson = None,
    voc_origin: options.VocOrigin = None,
    labels: options.Labels = None,
    min_score: options.MinScore = None,
    min_size: options.MinSize = None,
    max_boxes: options.MaxBoxes = None,
    crowd: options.Crowd = None,
    whole_image: options.WholeImage = False,
    grid: options.Grid = None,
    max_pixels: options.MaxPixels = None,
    image_timeout: options.ImageTimeout = None,
    on_error: options.OnError = None,
    on_nonfinite: options.OnNonfinite = None,
    shard: Annotated[
        str | None, option("Only part I of N, into FILE-000I-of-000N.h5: I/N, auto or auto/N.", panel=RUN)
    ] = None,
    engine: Annotated[str, option("local, or ray: the shards on a cluster.", default="local", panel=CLUSTER)] = "local",
    address: Annotated[str, option("Of a Ray cluster.", default="one started here", panel=CLUSTER)] = "",
    num_shards: Annotated[int, option("Shards of a run by Ray.", default="64, of 8 images or more", panel=CLUSTER)] = 0,
    gpus_per_worker: Annotated[float, option("GPUs of each of Ray's workers.", default="0", panel=CLUSTER)] = 0.0,
    merge: Annotated[
        bool, option("Whether Ray's shards become one file.", "--merge/--no-merge", default="merge", panel=CLUSTER)
    ] = True,
    overwrite: options.Overwrite = False,
    strict: Annotated[
        bool,
        option("Refuse to go on with a file of other versions or changed images.", "--strict", panel=RUN),
    ] = False,
    dry_run: Annotated[bool, option("Check and plan only; write nothing.", "--dry-run", panel=RUN)] = False,
    json: options.AsJson = False,
) -> None:
    """Extract the features of every box into an HDF5 file.

    The same command goes on where an interrupted run ended. EXIF orientation is applied; transparency is laid over black.

    Example: roialign extract images/ boxes.json -o features.h5 -c quickstart
    """
    given = options.settings_given(locals())
    settings = load(config, given)  # a wrong option is told before torch is loaded
    from roialign_cli.cli.progress import show_progress, stop_on_interrupt
    from roialign_cli.extraction.shards import parse_shard

    part = parse_shard(shard) if shard else None
    if engine not in ("local", "ray") or (engine == "ray" and part is not None):
        found = engine if part is None else f"{engine} and --shard {shard}"
        raise ConfigError("config-value", f"engine: expected local, or ray without --shard, found {found}")
    if num_shards < 0 or gpus_per_worker < 0:
        found = f"{num_shards} shards, {gpus_per_worker:g} GPUs"
        raise ConfigError("config-value", f"engine: expected no fewer than none of each, found {found}")
    from roialign_cli.extraction.plan import plan_run
    from roialign_cli.inputs.images import limit_pixels

    with stop_on_interrupt() as should_stop, limit_pixels(settings.max_pixels):
        plan = plan_run(images, boxes, output, settings)
        if engine == "ray" and not dry_run:
            from roialign_cli.cluster.connection import Cluster
            from roialign_cli.cluster.engine import extract_on_cluster

            _warn(plan, settings)
            cluster = Cluster(address, settings.processes, gpus_per_worker, num_shards)
            with show_progress() as progress:
                summary = extract_on_cluster(
                    plan, images, output, settings, cluster,
                    join=merge, overwrite=overwrite, on_progress=progress, should_stop=should_stop,
                )  # fmt: skip
            _tell_end(summary, as_json=json)
            return
        from roialign_cli.extraction.job import prepare_job
        from roialign_cli.extraction.run import run_job

        job = prepare_job(plan, images, output, settings, part)
        if dry_run:
            _tell_plan(job, as_json=json)
            return
        _warn(job.plan, settings)
        with show_progress() as progress:
            summary = run_job(job, overwrite=overwrite, strict=strict, on_progress=progress, should_stop=should_stop)
    _tell_end(summary, as_json=json)


def _tell_end(summary: Summary, *, as_json: bool) -> None:
    """What came of it, and the exit code."""
    from roialign_cli.cli.console import print_json

    if as_json:
        print_json(asdict(summary))
    else:
        _tell_summary(summary)
    if summary.interrupted:
        raise typer.Exit(INTERRUPTED)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


def _warn(plan: Plan, settings: Settings) -> None:
    from roialign_cli.cli.console import pluralise, stderr

    clipped = settings.clip
    for number, noun, text in (
        (len(plan.problems), "image", "cannot be read; recorded as failed"),
        (
            plan.outside_boxes,
            "box",
            "outside the image in part or whole" + (", clipped" if clipped else "; --clip clips"),
        ),
        (plan.empty_boxes, "box", "without area"),
    ):
        if number:
            stderr.print(f"warning: {pluralise(number, noun)} {text}", highlight=False)


def _tell_plan(job: Job, *, as_json: bool) -> None:
    from roialign_cli.cli.console import human_bytes, key_value_table, print_json, stdout

    plan, size = job.plan, job.layout.feature_bytes(job.plan.rows)
    if as_json:
        shapes = {layer: (plan.rows, *shape) for layer, shape in job.layout.layers.items()}
        print_json({
            "images": plan.images, "unreadable_images": len(plan.problems), "unused_images": plan.unused_images,
            "boxes": plan.rows, "outside_boxes": plan.outside_boxes, "empty_boxes": plan.empty_boxes,
            "features": shapes, "bytes": size, "free_bytes": job.free_bytes,
        })  # fmt: skip
        return
    rows = [
        ("images", f"{plan.images}, of which {len(plan.problems)} unreadable; {plan.unused_images} more are not used"),
        (
            "boxes",
            f"{plan.rows}, of which {plan.outside_boxes} reach outside their image, {plan.empty_boxes} are empty",
        ),
        *((f"layer {layer}", str([plan.rows, *shape])) for layer, shape in job.layout.layers.items()),
        ("size", f"{human_bytes(size)} of {human_bytes(job.free_bytes)} free"),
    ]
    stdout.print(key_value_table(f"{job.output}: what would be written", rows), highlight=False)


def _tell_summary(summary: Summary) -> None:
    from roialign_cli.cli.console import human_bytes, key_value_table, pluralise, stderr, stdout
    from roialign_cli.regions.values import ValueReport

    title = f"{summary.output}: " + (
        "was finished already, nothing to do" if summary.already_finished
        else "interrupted; the same command goes on" if summary.interrupted
        else f"finished, but {pluralise(summary.failed, 'image')} failed" if summary.failed else "finished"
    )  # fmt: skip
    counts = f"{summary.done} done, {summary.failed} failed" + (
        f", {summary.pending} pending" if summary.pending else ""
    )
    rows = [("images", counts), ("boxes", str(summary.boxes))]
    rows += [(f"layer {layer}", str(list(shape))) for layer, shape in summary.features.items()]
    rows += [("size", human_bytes(summary.bytes)), ("time", f"{summary.seconds:.1f} s")]
    if flaws := ValueReport(summary.nonfinite_values, summary.saturated_values):
        rows.append(("warning", f"features have {flaws}; `roialign inspect` names the images"))
    stdout.print(key_value_table(title, rows), highlight=False)
    for name, reason in list(summary.failures.items())[:10]:
        stderr.print(f'failed: "{name}": {reason}', highlight=False, markup=False)
    if len(summary.failures) > 10:
        stderr.print(f"... and {len(summary.failures) - 10} more; `roialign inspect {summary.output}` lists all")
