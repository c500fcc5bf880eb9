"""`roialign plan`: what a run over several machines will take."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

from roialign_cli.cli import options
from roialign_cli.cli.options import CLUSTER, option
from roialign_cli.config import Settings, load
from roialign_cli.errors import ConfigError

if TYPE_CHECKING:
    from roialign_cli.types import Plan

MEASURED_IMAGES = 8

Resize = tuple[int, int | None] | None


def plan(
    images: options.Images,
    boxes: options.Boxes = None,
    images_per_second: Annotated[
        float | None, option("Of one node, on average.", default="measured here, a minute", panel=CLUSTER)
    ] = None,
    nodes: Annotated[int, option("Nodes that work at once.", default="1", panel=CLUSTER)] = 1,
    shards: Annotated[int, option("Parts of the run.", default="64", panel=CLUSTER)] = 64,
    repeat: Annotated[
        int, option("As if the images came so many times: a large set by a sample.", default="1", panel=CLUSTER)
    ] = 1,
    row_bytes: Annotated[
        int, option("Bytes of features of a box.", default="256 x 7 x 7 of float32", panel=CLUSTER)
    ] = 50176,
    config: options.Config = None,
    backbone: options.Backbone = None,
    precision: options.Precision = None,
    device: options.Device = None,
    resize: options.Resize = None,
    boxes_format: options.BoxesFormat = None,
    whole_image: options.WholeImage = False,
    grid: options.Grid = None,
    json: options.AsJson = False,
) -> None:
    """Estimate time and size of a run in shards on several nodes, with nodes that lag and fail.

    Example: roialign plan images/ boxes.json --images-per-second 30 --nodes 16 --shards 256
    """
    per_second = 1.0 if images_per_second is None else images_per_second
    if per_second <= 0 or min(nodes, shards, repeat, row_bytes) < 1:
        given = f"{per_second:g} images per second, {nodes} nodes, {shards} shards"
        expected = "expected numbers greater than zero"
        raise ConfigError("config-value", f"plan: {expected}, found {given}, {repeat} times, {row_bytes} bytes")
    settings = load(config, options.settings_given(locals()))
    import numpy as np

    from roialign_cli.cli.console import print_json
    from roialign_cli.cluster.simulation import Nodes, makespans
    from roialign_cli.config import parse_resize
    from roialign_cli.extraction.plan import make_plan
    from roialign_cli.extraction.shards import estimate_work, shard_boundaries
    from roialign_cli.inputs.boxes import read_boxes
    from roialign_cli.inputs.images import limit_pixels

    with limit_pixels():
        made = make_plan(images, read_boxes(boxes, images, settings), clip=False, on_error="skip")
    if images_per_second is None:
        resized_to, speed = _measure(settings, made)
        work = estimate_work(made.sizes, np.diff(made.table.offset), resized_to)
    else:  # a detector's own resize is taken where none is said: it is the default backbone's, too
        resized_to = (800, 1333) if settings.resize == "backbone" else parse_resize(settings.resize)
        work = estimate_work(made.sizes, np.diff(made.table.offset), resized_to)
        speed = float(work.mean()) * images_per_second
    work = np.tile(work, repeat)
    count = min(shards, max(1, len(work)))
    seconds = np.diff(np.concatenate([[0.0], np.cumsum(work)])[shard_boundaries(work, count)]) / speed
    ran = makespans(seconds, Nodes(nodes))
    total = float(seconds.sum())
    found: dict[str, Any] = {
        "images": len(work), "boxes": made.rows * repeat, "bytes": made.rows * repeat * row_bytes,
        "images_per_second": float(len(work) / total), "shards": count, "nodes": nodes,
        "node_hours": total / 3600, "ideal_hours": total / nodes / 3600, "median_hours": float(np.median(ran)) / 3600,
        "hours_95_percent": float(ran[int(0.95 * len(ran))]) / 3600, "skew": float(seconds.max() / seconds.mean()),
    }  # fmt: skip
    if json:
        print_json(found)
    else:
        _tell(found)


def _measure(settings: Settings, made: Plan) -> tuple[Resize, float]:
    """How images are resized, and estimated work a second of this machine, from a short run of images made for it.

    They have as many boxes as those of the plan, on average.
    """
    import numpy as np

    from roialign_cli.extraction.benchmark import DATA_SIZE, run_speed
    from roialign_cli.extraction.shards import estimate_work

    boxes = max(1, round(made.rows / max(1, made.images)))
    weights = settings.weights if settings.backbone == "gabor" else "random"
    resize, seconds = run_speed(replace(settings, weights=weights), MEASURED_IMAGES, boxes)
    (work,) = estimate_work(np.array([DATA_SIZE]), np.array([boxes]), resize)
    return resize, float(work / seconds)


def _time(hours: float) -> str:
    return str(timedelta(seconds=round(3600 * hours)))


def _tell(found: dict[str, Any]) -> None:
    from roialign_cli.cli.console import human_bytes, key_value_table, stdout

    rows = [
        ("images", f"{found['images']:,}, {found['images_per_second']:.3g} a second on one node"),
        ("boxes", f"{found['boxes']:,}, {human_bytes(found['bytes'])}"),
        ("shards", f"{found['shards']}, the largest {found['skew'] - 1:.2%} over the mean"),
        ("node-hours", f"{found['node_hours']:,.2f}"),
        ("time", f"{_time(found['ideal_hours'])} if all went perfectly on {found['nodes']} nodes"),
        ("", f"{_time(found['median_hours'])} in half, {_time(found['hours_95_percent'])} in 95 % of simulated runs"),
    ]
    stdout.print(key_value_table("", rows), highlight=False)
    if found["shards"] < 3 * found["nodes"]:
        stdout.print("More shards than nodes, three for each or more, even out nodes that lag.", highlight=False)
