"""`roialign extract`: the main job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roialign_cli.cli import options
from roialign_cli.cli.options import BOXES, CLUSTER, RUN, option
from roialign_cli.cli.settings import takes_settings
from roialign_cli.config import Settings
from roialign_cli.config import read as read_config
from roialign_cli.errors import ConfigError, ExitCode, OutputError

if TYPE_CHECKING:
    from roialign_cli.extraction.job import Job
    from roialign_cli.types import Plan, Summary


@takes_settings(
    "config", "backbone", "weights", "layers", "resize", "decoder", "precision", "compile",
    "region", "region_missing", "deform",
    "output_size", "sampling_ratio", "aligned", "centers", "mode", "reduce", "context", "levels", "fuse", "head", "clip",
    "kernel", "dtype", "device", "processes", "batch_size", "workers",
    "boxes_format", "box_units", "columns", "allow_outside", "classes", "images_json", "voc_origin",
    "labels", "min_score", "min_size", "max_boxes", "crowd", "whole_image", "grid",
    "detect", "proposals", "nms", "class_agnostic",
    "max_pixels", "image_timeout", "on_error", "on_nonfinite",
    first=frozenset({
        "config", "backbone", "weights", "layers", "output_size", "sampling_ratio", "mode", "reduce", "device",
    }),
    device=Annotated[
        str | None, option("auto, cpu, cuda, cuda:all, cuda:0,2, mps or xpu.", default=options.DEFAULTS.device, panel=RUN)
    ],
)  # fmt: skip
def extract(
    images: options.OptionalImages = None,
    boxes: options.Boxes = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Feature file to write.", show_default=False)
    ] = None,
    *,
    config: str | None = None,
    settings: Settings,
    shard: Annotated[
        str | None,
        option("Extract only part I of N, into FILE-000I-of-000N.h5: I/N, auto or auto/N.", panel=RUN),
    ] = None,
    engine: Annotated[
        str, option("local, or ray: extract shards on a cluster.", default="local", panel=CLUSTER)
    ] = "local",
    address: Annotated[str, option("Address of a Ray cluster.", default="a cluster started here", panel=CLUSTER)] = "",
    num_shards: Annotated[int, option("Shards of a run by Ray.", default="64, of 8 images or more", panel=CLUSTER)] = 0,
    gpus_per_worker: Annotated[float, option("GPUs per worker of Ray.", default="0", panel=CLUSTER)] = 0.0,
    merge: Annotated[
        bool,
        option("Merge the shards of a Ray run into one file.", "--merge/--no-merge", default="merge", panel=CLUSTER),
    ] = True,
    overwrite: options.Overwrite = False,
    strict: Annotated[
        bool,
        option(
            "Refuse to resume a file that other versions began or whose images have changed.", "--strict", panel=RUN
        ),
    ] = False,
    reuse: Annotated[
        list[Path] | None,
        option("Take over what an earlier feature file holds of the same images and boxes.", panel=RUN),
    ] = None,
    update: Annotated[
        Path | None, option("Feature file to bring up to date, in place of -o: --reuse it, then replace it.", panel=RUN)
    ] = None,
    write_boxes: Annotated[
        Path | None,
        option("With --detect: also write the boxes, as native JSON, or as --boxes-format coco-results.", panel=BOXES),
    ] = None,
    dry_run: Annotated[bool, option("Check and plan only; write nothing.", "--dry-run", panel=RUN)] = False,
    json: options.AsJson = False,
) -> None:
    """Extract the features of every box into an HDF5 file.

    The same command resumes an interrupted run. EXIF orientation is applied; transparency is laid over black.

    Example: roialign extract images/ boxes.json -o features.h5 -c quickstart
    """
    from roialign_cli.cli.progress import show_progress, stop_on_interrupt
    from roialign_cli.extraction.shards import parse_shard

    if update is not None:
        from roialign_cli.extraction.run import update_path

        if output is not None or reuse or shard or engine != "local" or overwrite:
            others = "-o, --reuse, --shard, --engine or --overwrite"
            raise ConfigError("usage", f"update: expected none of {others} beside it, found one")
        output, reuse = update_path(update), [update]
    images, boxes, output = _inputs(config, images, boxes, output, with_boxes=not (settings.grid or settings.detect))
    part = parse_shard(shard) if shard else None
    _check_engine(engine, None if part is None else shard, num_shards, gpus_per_worker, reuse, settings)
    boxes_form = _check_written_boxes(write_boxes, settings, overwrite=overwrite)
    from roialign_cli.extraction.plan import plan_run
    from roialign_cli.inputs.images import limit_pixels, open_images

    with stop_on_interrupt() as should_stop, limit_pixels(settings.max_pixels):
        image_set = open_images(images, boxes)
        plan = plan_run(image_set, boxes, output, settings)  # reports bad input before torch is loaded
        if engine == "ray" and not dry_run:
            from roialign_cli.cluster.connection import Cluster
            from roialign_cli.cluster.engine import extract_on_cluster

            _warn_of_plan(plan, settings)
            cluster = Cluster(address, settings.processes, gpus_per_worker, num_shards)
            with show_progress() as progress:
                summary = extract_on_cluster(
                    plan, image_set, output, settings, cluster,
                    join=merge, overwrite=overwrite, on_progress=progress, should_stop=should_stop,
                )  # fmt: skip
            _finish(summary, as_json=json)
            return
        from roialign_cli.extraction.job import prepare_job
        from roialign_cli.extraction.run import run_job, run_update

        job = prepare_job(plan, image_set, output, settings, part)
        if dry_run:
            _warn_of_plan(job.plan, settings)
            _print_plan(job, reuse or [], as_json=json)
            return
        _warn_of_plan(job.plan, settings)
        with show_progress() as progress:
            common: dict[str, Any] = {"strict": strict, "on_progress": progress, "should_stop": should_stop}
            if update is not None:
                summary = run_update(job, update, **common)
            else:
                summary = run_job(job, overwrite=overwrite, reuse=reuse or [], **common)
    if write_boxes is not None and summary.finished:
        from roialign_cli.export import export
        from roialign_cli.store import FeatureFile

        with FeatureFile(job.output) as file:
            export(file, write_boxes, boxes_form, overwrite=True)
    _finish(summary, as_json=json)


def _check_engine(
    engine: str, shard: str | None, num_shards: int, gpus: float, reuse: list[Path] | None, settings: Settings
) -> None:
    """Raise ConfigError if options of the engine are wrong, or do not go together with others."""
    if settings.detect and reuse:
        raise ConfigError("config-value", "reuse: expected none with detect, found an earlier file")
    for option_name, given in (("reuse", reuse), ("detect", settings.detect)):
        if given and engine != "local":
            raise ConfigError("config-value", f"{option_name}: expected engine local with it, found {engine}")
    if engine not in ("local", "ray") or (engine == "ray" and shard is not None):
        found = engine if shard is None else f"{engine} and --shard {shard}"
        raise ConfigError("config-value", f"engine: expected local, or ray without --shard, found {found}")
    if num_shards < 0 or gpus < 0:
        found = f"{num_shards} shards, {gpus:g} GPUs"
        raise ConfigError("config-value", f"engine: expected numbers of at least 0, found {found}")


def _check_written_boxes(path: Path | None, settings: Settings, *, overwrite: bool) -> str:
    """Return the form of the boxes that a run writes. Raises ConfigError or OutputError if it cannot write them."""
    form = "native" if settings.boxes_format == "auto" else settings.boxes_format
    if path is not None and not settings.detect:
        raise ConfigError("usage", "write_boxes: expected --detect with it, found none", "--detect")
    if path is not None and form not in ("native", "coco-results"):
        raise ConfigError("config-value", f"boxes_format: expected native or coco-results to write, found {form}")
    if path is not None and path.exists() and not overwrite:
        message = f"{path}: expected nothing there, found a file"
        raise OutputError("output-exists", message, "choose another --write-boxes, or --overwrite")
    return form


def _inputs(
    config: str | None, images: str | None, boxes: Path | None, output: Path | None, *, with_boxes: bool
) -> tuple[str, Path | None, Path]:
    """Return images, boxes and output, from the command line or else from `images:`, `boxes:` and `output:` of a configuration.

    Raises ConfigError if one is missing.
    """
    stated = read_config(config) if config else {}
    images = images or str(stated.get("images") or "")
    if boxes is None and with_boxes and stated.get("boxes"):
        boxes = Path(str(stated["boxes"]))
    if output is None and stated.get("output"):
        output = Path(str(stated["output"]))
    if not images or output is None:
        missing = "-o FILE" if images else "IMAGES"
        message = f"extract: expected {missing} on the command line or in a configuration, found none"
        raise ConfigError("usage", message, "roialign extract images/ boxes.json -o features.h5")
    if boxes is None and with_boxes:
        hint = "name one, or use --detect, --whole-image or --grid 3x3"
        raise ConfigError("config-value", "extract: expected a box file, found none", hint)
    return images, boxes, output


def _finish(summary: Summary, *, as_json: bool) -> None:
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


def _warn_of_plan(plan: Plan, settings: Settings) -> None:
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


def _print_plan(job: Job, reuse: list[Path], *, as_json: bool) -> None:
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
