"""Estimate the time and size of a run in shards on several nodes, from the speed of one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from roialign_cli.arrays import Integers
from roialign_cli.cluster.simulation import Nodes, makespans
from roialign_cli.config import DETECTION_RESIZE, Resize, Settings, parse_resize
from roialign_cli.extraction.shards import estimate_work, shard_boundaries
from roialign_cli.types import Plan

MEASURED_IMAGES = 8  # of the short run that measures this machine


@dataclass(frozen=True)
class Estimate:
    """Hold an estimate, as printed and as `--json`. `skew` is the work of the largest shard over the mean."""

    images: int
    boxes: int
    bytes: int
    images_per_second: float
    shards: int
    nodes: int
    node_hours: float
    ideal_hours: float
    median_hours: float
    hours_95_percent: float
    skew: float


@dataclass(frozen=True)
class NodeSpeed:
    """Hold the work per second of one node, in the units of `estimate_work`, and the resize that work depends on."""

    work_per_second: float
    resize: Resize


def given_speed(plan: Plan, settings: Settings, images_per_second: float) -> NodeSpeed:
    """Return the speed of a node that extracts the images of a plan at a rate, on average.

    Where no resize is set, it is that of the default backbone, a detector of torchvision.
    """
    resize = DETECTION_RESIZE if settings.resize == "backbone" else parse_resize(settings.resize)
    work = estimate_work(plan.sizes, _box_counts(plan), resize)
    return NodeSpeed(float(work.mean()) * images_per_second, resize)


def measure_speed(plan: Plan, settings: Settings) -> NodeSpeed:
    """Measure this machine in a short run over images made for it, with as many boxes as those of the plan on average."""
    from roialign_cli.extraction.benchmark import DATA_SIZE, run_speed

    boxes = max(1, round(plan.rows / max(1, plan.images)))
    weights = settings.weights if settings.backbone == "gabor" else "random"
    resize, seconds = run_speed(replace(settings, weights=weights), MEASURED_IMAGES, boxes)
    (work,) = estimate_work(np.array([DATA_SIZE]), np.array([boxes]), resize)
    return NodeSpeed(float(work / seconds), resize)


def estimate_run(
    plan: Plan, speed: NodeSpeed, *, nodes: int, shards: int, repeat: int = 1, row_bytes: int = 50176
) -> Estimate:
    """Estimate a run over the images of a plan, `repeat` times, by simulating nodes that lag and fail."""
    work = np.tile(estimate_work(plan.sizes, _box_counts(plan), speed.resize), repeat)
    count = min(shards, max(1, len(work)))
    ends = np.concatenate([[0.0], np.cumsum(work)])
    seconds = np.diff(ends[shard_boundaries(work, count)]) / speed.work_per_second
    runs = makespans(seconds, Nodes(nodes))
    total = float(seconds.sum())
    return Estimate(
        images=len(work),
        boxes=plan.rows * repeat,
        bytes=plan.rows * repeat * row_bytes,
        images_per_second=float(len(work) / total),
        shards=count,
        nodes=nodes,
        node_hours=total / 3600,
        ideal_hours=total / nodes / 3600,
        median_hours=float(np.median(runs)) / 3600,
        hours_95_percent=float(runs[int(0.95 * len(runs))]) / 3600,
        skew=float(seconds.max() / seconds.mean()),
    )


def _box_counts(plan: Plan) -> Integers:
    counts: Integers = np.diff(plan.table.offset)
    return counts
