"""`roialign plan`: estimate what a run over several machines takes."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from roialign_cli.cli import options
from roialign_cli.cli.options import CLUSTER, option
from roialign_cli.cli.settings import takes_settings
from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError

if TYPE_CHECKING:
    from roialign_cli.cluster.estimate import Estimate

MOST, MOST_IMAGES = 10**6, 10**8
SLOWEST = 1e-6  # images per second
MIN_SHARDS_PER_NODE = 3  # fewer do not even out nodes that lag


@takes_settings(
    "config", "backbone", "precision", "device", "resize", "region", "region_missing", "deform",
    "boxes_format", "box_units", "columns", "allow_outside", "whole_image", "grid",
)  # fmt: skip
def plan(
    images: options.Images,
    boxes: options.Boxes = None,
    images_per_second: Annotated[
        float | None,
        option("Average speed of one node.", default="measured here, which takes a minute", panel=CLUSTER),
    ] = None,
    nodes: Annotated[int, option("Nodes that work at once.", default="1", panel=CLUSTER)] = 1,
    shards: Annotated[int, option("Parts of the run.", default="64", panel=CLUSTER)] = 64,
    repeat: Annotated[
        int,
        option("Count each image this many times, to estimate a large set by a sample.", default="1", panel=CLUSTER),
    ] = 1,
    row_bytes: Annotated[
        int, option("Bytes of features per box.", default="256 x 7 x 7 of float32", panel=CLUSTER)
    ] = 50176,
    *,
    settings: Settings,
    json: options.AsJson = False,
) -> None:
    """Estimate time and size of a run in shards on several nodes, with nodes that lag and fail.

    Example: roialign plan images/ boxes.json --images-per-second 30 --nodes 16 --shards 256
    """
    rate = 1.0 if images_per_second is None else images_per_second
    if not SLOWEST <= rate < math.inf or min(nodes, shards, repeat, row_bytes) < 1 or max(nodes, shards) > MOST:
        given = f"{rate:g} images per second, {nodes} nodes, {shards} shards, {repeat} times, {row_bytes} bytes"
        expected = (
            f"numbers of at least 1, at most {MOST:,} nodes and shards, and {SLOWEST:g} images per second or more"
        )
        raise ConfigError("config-value", f"plan: expected {expected}, found {given}")
    from roialign_cli.cli.console import print_json
    from roialign_cli.cluster.estimate import estimate_run, given_speed, measure_speed
    from roialign_cli.extraction.plan import make_plan
    from roialign_cli.inputs.boxes import read_boxes
    from roialign_cli.inputs.images import limit_pixels, open_images

    with limit_pixels():
        found = open_images(images, boxes)
        made = make_plan(found, read_boxes(boxes, found, settings), settings)
    if not 0 < made.images * repeat <= MOST_IMAGES:
        found_images = f"found {made.images:,} images, {repeat:,} times"
        raise ConfigError("config-value", f"plan: expected 1 to {MOST_IMAGES:,} images in all, {found_images}")
    speed = measure_speed(made, settings) if images_per_second is None else given_speed(made, settings, rate)
    estimate = estimate_run(made, speed, nodes=nodes, shards=shards, repeat=repeat, row_bytes=row_bytes)
    if json:
        print_json(asdict(estimate))
    else:
        _print_estimate(estimate)


def _print_estimate(estimate: Estimate) -> None:
    """Print an estimate, with advice if there are too few shards."""
    from roialign_cli.cli.console import human_bytes, key_value_table, stdout

    ideal, median, late = (
        str(timedelta(seconds=round(3600 * hours)))
        for hours in (estimate.ideal_hours, estimate.median_hours, estimate.hours_95_percent)
    )
    rows = [
        ("images", f"{estimate.images:,}, {estimate.images_per_second:.3g} per second on one node"),
        ("boxes", f"{estimate.boxes:,}, {human_bytes(estimate.bytes)}"),
        ("shards", f"{estimate.shards}, the largest {estimate.skew - 1:.2%} over the mean"),
        ("node-hours", f"{estimate.node_hours:,.2f}"),
        ("time", f"{ideal} on {estimate.nodes} nodes without any delay"),
        ("", f"{median} in half, {late} in 95 % of simulated runs"),
    ]
    stdout.print(key_value_table("", rows), highlight=False)
    if estimate.shards < MIN_SHARDS_PER_NODE * estimate.nodes:
        advice = f"Use at least {MIN_SHARDS_PER_NODE} shards per node: they even out nodes that lag."
        stdout.print(advice, highlight=False)
