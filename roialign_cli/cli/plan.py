"""`roialign plan`: what a run over several machines will take."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from roialign_cli.cli import options
from roialign_cli.cli.options import CLUSTER, option
from roialign_cli.config import load
from roialign_cli.errors import ConfigError


def plan(
    images: options.Images,
    boxes: options.Boxes = None,
    images_per_second: Annotated[
        float, option("Of one node: what `roialign bench` or a first run says.", panel=CLUSTER)
    ] = ...,  # type: ignore[assignment]
    nodes: Annotated[int, option("Nodes that work at once.", default="1", panel=CLUSTER)] = 1,
    shards: Annotated[int, option("Parts of the run.", default="64", panel=CLUSTER)] = 64,
    row_bytes: Annotated[
        int, option("Bytes of features of a box.", default="256 x 7 x 7 of float32", panel=CLUSTER)
    ] = 50176,
    config: options.Config = None,
    resize: options.Resize = None,
    boxes_format: options.BoxesFormat = None,
    whole_image: options.WholeImage = False,
    grid: options.Grid = None,
    json: options.AsJson = False,
) -> None:
    """Estimate time and size of a run in shards on several nodes, with nodes that lag and fail.

    Example: roialign plan images/ boxes.json --images-per-second 30 --nodes 16 --shards 256
    """
    if images_per_second <= 0 or min(nodes, shards, row_bytes) < 1:
        given = f"{images_per_second:g} images per second, {nodes} nodes, {shards} shards, {row_bytes} bytes"
        raise ConfigError("config-value", f"plan: expected numbers greater than zero, found {given}")
    settings = load(config, options.settings_given(locals()))
    import numpy as np

    from roialign_cli.cli.console import print_json
    from roialign_cli.config import parse_resize
    from roialign_cli.inputs.boxes import read_boxes
    from roialign_cli.inputs.images import decoding
    from roialign_cli.planning import make_plan
    from roialign_cli.sharding import cuts, estimate_work
    from roialign_cli.simulation import Nodes, makespans

    with decoding():
        made = make_plan(images, read_boxes(boxes, images, settings), clip=False, on_error="skip")
    # A detector's own resize is taken where none is said: it is the default backbone's, too.
    resized_to = (800, 1333) if settings.resize == "backbone" else parse_resize(settings.resize)
    work = estimate_work(made.sizes, np.diff(made.table.offset), resized_to)
    count = min(shards, max(1, made.images))
    seconds = np.diff(np.concatenate([[0.0], np.cumsum(work)])[cuts(work, count)]) / work.mean() / images_per_second
    ran = makespans(seconds, Nodes(nodes))
    total = float(seconds.sum())
    found: dict[str, Any] = {
        "images": made.images, "boxes": made.rows, "bytes": made.rows * row_bytes, "shards": count, "nodes": nodes,
        "node_hours": total / 3600, "ideal_hours": total / nodes / 3600, "median_hours": float(np.median(ran)) / 3600,
        "hours_95_percent": float(ran[int(0.95 * len(ran))]) / 3600, "skew": float(seconds.max() / seconds.mean()),
    }  # fmt: skip
    if json:
        print_json(found)
    else:
        _tell(found)


def _time(hours: float) -> str:
    return str(timedelta(seconds=round(3600 * hours)))


def _tell(found: dict[str, Any]) -> None:
    from roialign_cli.cli.console import human_bytes, pairs, stdout

    rows = [
        ("images", f"{found['images']:,}"),
        ("boxes", f"{found['boxes']:,}, {human_bytes(found['bytes'])}"),
        ("shards", f"{found['shards']}, the largest {found['skew'] - 1:.2%} over the mean"),
        ("node-hours", f"{found['node_hours']:,.2f}"),
        ("time", f"{_time(found['ideal_hours'])} if all went perfectly on {found['nodes']} nodes"),
        ("", f"{_time(found['median_hours'])} in half, {_time(found['hours_95_percent'])} in 95 % of simulated runs"),
    ]
    stdout.print(pairs("", rows), highlight=False)
    if found["shards"] < 3 * found["nodes"]:
        stdout.print("More shards than nodes, three for each or more, even out nodes that lag.", highlight=False)
