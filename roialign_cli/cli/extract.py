"""`roialign extract`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from roialign_cli.cli import options
from roialign_cli.cli.extract_summary import finish, print_plan, warn_of_plan
from roialign_cli.cli.options import BOXES, CLUSTER, RUN, option
from roialign_cli.cli.settings import takes_settings
from roialign_cli.config import Settings
from roialign_cli.config import read as read_config
from roialign_cli.errors import ConfigError, OutputError


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
    boxes_form = _check_written_boxes(write_boxes, output, settings, overwrite=overwrite)
    from roialign_cli.extraction.plan import plan_run
    from roialign_cli.inputs.images import limit_pixels, open_images
    from roialign_cli.system.garbage import put_off

    with stop_on_interrupt() as should_stop, limit_pixels(settings.max_pixels):
        image_set = open_images(images, boxes)
        with put_off():
            plan = plan_run(image_set, boxes, output, settings)  # reports bad input before torch is loaded
        if engine == "ray" and not dry_run:
            from roialign_cli.cluster.connection import Cluster
            from roialign_cli.cluster.engine import extract_on_cluster

            warn_of_plan(plan, settings)
            cluster = Cluster(address, settings.processes, gpus_per_worker, num_shards)
            with show_progress() as progress:
                summary = extract_on_cluster(
                    plan, image_set, output, settings, cluster,
                    join=merge, overwrite=overwrite, reuse=reuse or [], on_progress=progress, should_stop=should_stop,
                )  # fmt: skip
            finish(summary, as_json=json)
            return
        with put_off():
            from roialign_cli.extraction.job import prepare_job
            from roialign_cli.extraction.run import run_job, run_update

            job = prepare_job(plan, image_set, output, settings, part)
        if dry_run:
            warn_of_plan(job.plan, settings)
            print_plan(job, reuse or [], as_json=json)
            return
        warn_of_plan(job.plan, settings)
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
    finish(summary, as_json=json)


def _check_engine(
    engine: str, shard: str | None, num_shards: int, gpus: float, reuse: list[Path] | None, settings: Settings
) -> None:
    """Raise ConfigError if options of the engine are wrong, or do not go together with others."""
    if settings.detect and reuse:
        raise ConfigError("config-value", "reuse: expected none with detect, found an earlier file")
    if settings.detect and engine != "local":
        raise ConfigError("config-value", f"detect: expected engine local with it, found {engine}")
    if engine not in ("local", "ray") or (engine == "ray" and shard is not None):
        found = engine if shard is None else f"{engine} and --shard {shard}"
        raise ConfigError("config-value", f"engine: expected local, or ray without --shard, found {found}")
    if num_shards < 0 or gpus < 0:
        found = f"{num_shards} shards, {gpus:g} GPUs"
        raise ConfigError("config-value", f"engine: expected numbers of at least 0, found {found}")


def _check_written_boxes(path: Path | None, output: Path, settings: Settings, *, overwrite: bool) -> str:
    """Return the form of the boxes that a run writes. Raises ConfigError or OutputError if it cannot write them."""
    form = "native" if settings.boxes_format == "auto" else settings.boxes_format
    if path is not None and not settings.detect:
        raise ConfigError("usage", "write_boxes: expected --detect with it, found none", "--detect")
    if path is not None and form not in ("native", "coco-results"):
        raise ConfigError("config-value", f"boxes_format: expected native or coco-results to write, found {form}")
    if path is not None and path.absolute() == output.absolute():
        message = f"write_boxes: expected another file than the output, found {path}"
        raise ConfigError("usage", message)
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
