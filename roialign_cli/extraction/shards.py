"""Divide a run into shards: ranges of images of equal estimated work, each with a feature file of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Integers
from roialign_cli.config import Resize
from roialign_cli.errors import ConfigError
from roialign_cli.regions.resize import resize_scale
from roialign_cli.store.identity import plan_sha256
from roialign_cli.types import Plan

# Costs in pixels of network input, measured with ResNet-50 and a pyramid on a CPU (benchmarks/shards.py).
BOX_PIXELS = 50  # of a box
IMAGE_PIXELS = 2000  # of an image, beside its pixels and boxes
IMAGES_PER_BLOCK = 1 << 17  # whose work is estimated at a time
AUTO = "expected I/N, auto under a SLURM array, or auto/N under an indexed Kubernetes job"


@dataclass(frozen=True)
class Shard:
    """Identify part `number` of `count`, counted from 1."""

    number: int
    count: int

    def path(self, output: Path) -> Path:
        """Return the file of this shard: features.h5 -> features-0003-of-0016.h5."""
        return output.with_name(f"{output.stem}-{self.number:04}-of-{self.count:04}{output.suffix}")


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """Parse `3/16`, `auto` (SLURM's array variables) or `auto/16` (Kubernetes' JOB_COMPLETION_INDEX).

    Raises ConfigError if the text has another form, or a variable is missing.
    """
    kind, _, total = text.partition("/")
    if kind == "auto":
        number, count = _auto(total, environment)
    elif re.fullmatch(r"[0-9]+/[0-9]+", text):
        number, count = int(kind), int(total)
    else:
        raise ConfigError("config-value", f"shard: {AUTO}, found {text!r}")
    if not 1 <= number <= count:
        raise ConfigError("config-value", f"shard: expected I from 1 to N, found {number}/{count}")
    return Shard(number, count)


def _auto(total: str, environment: Mapping[str, str]) -> tuple[int, int]:
    def number(name: str, default: str | None = None) -> int:
        value = environment.get(name, default)
        if value is None or not value.isdecimal():
            found = "nothing" if value is None else repr(value)
            raise ConfigError("config-value", f"shard: {AUTO}; expected a number in {name}, found {found}")
        return int(value)

    if total and not total.isdecimal():
        raise ConfigError("config-value", f"shard: {AUTO}, found 'auto/{total}'")
    if "SLURM_ARRAY_TASK_ID" in environment:
        steps = number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN")
        position = steps // max(1, number("SLURM_ARRAY_TASK_STEP", "1")) + 1
        return position, int(total) if total else number("SLURM_ARRAY_TASK_COUNT")
    if not total:
        raise ConfigError("config-value", f"shard: {AUTO}; found neither SLURM_ARRAY_TASK_ID nor N")
    return number("JOB_COMPLETION_INDEX") + 1, int(total)


def estimate_work(sizes: Integers, boxes: Integers, resize: Resize) -> npt.NDArray[np.float64]:
    """Return the work of images [M] in pixels of network input; an image without boxes or size costs almost nothing.

    sizes [M, 2] are (height, width), boxes [M] the number of boxes of each image.
    """
    if len(sizes) > IMAGES_PER_BLOCK:  # intermediate results are larger than the result
        work = np.empty(len(sizes))
        for i in range(0, len(sizes), IMAGES_PER_BLOCK):
            block = slice(i, i + IMAGES_PER_BLOCK)
            work[block] = estimate_work(sizes[block], boxes[block], resize)
        return work
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    scale = resize_scale(height, width, resize)
    scale = np.where(np.isfinite(scale), scale, 0.0)
    computed = height * width * scale**2 + BOX_PIXELS * boxes + IMAGE_PIXELS
    return np.where((boxes > 0) & (height > 0), computed, 1.0)


def shard_boundaries(work: npt.NDArray[np.float64], count: int) -> Integers:
    """Return [count + 1] ascending image indexes: shard i is images b[i]:b[i + 1], of work as equal as images allow."""
    ends = np.zeros(len(work) + 1)
    np.cumsum(work, out=ends[1:])
    wanted = ends[-1] * np.arange(1, count) / count
    after = np.clip(np.searchsorted(ends, wanted), 1, len(work)) if len(work) else np.zeros(count - 1, np.int64)
    nearer = np.where(wanted - ends[after - 1] < ends[after] - wanted, after - 1, after) if len(work) else after
    return np.concatenate([[0], np.maximum.accumulate(nearer), [len(work)]]).astype(np.int64)


@dataclass(frozen=True)
class PlanSplit:
    """Hold a plan and its boundaries: part i, from 1, is images ends[i - 1]:ends[i]. `sha256` is that of the whole plan."""

    plan: Plan
    ends: Integers
    sha256: str


def split_plan(plan: Plan, count: int, resize: Resize) -> PlanSplit:
    """Divide a plan into parts of equal estimated work. Raises ConfigError if there are fewer images than parts."""
    if count > max(1, plan.images):
        raise ConfigError("config-value", f"shard: expected at most {plan.images}, one per image, found {count}")
    work = estimate_work(plan.sizes, np.diff(plan.table.offset), resize)
    return PlanSplit(plan, shard_boundaries(work, count), plan_sha256(plan))


def shard_plan(whole: PlanSplit, number: int) -> tuple[Plan, dict[str, Any]]:
    """Return part `number`, from 1, as a plan of its own, and the attributes that identify its file."""
    plan, table = whole.plan, whole.plan.table
    first, stop = whole.ends[number - 1 : number + 1].tolist()
    low, high = int(table.offset[first]), int(table.offset[stop])
    columns: dict[str, Any] = {
        name: values[low:high]
        for name in ("boxes", "labels", "scores", "ids", "crowd", "relative_boxes", "rotated", "points")
        if (values := getattr(table, name)) is not None
    }
    if table.shapes is not None:
        columns["shapes"] = table.shapes.take(slice(low, high))
    part = replace(table, names=table.names[first:stop], offset=table.offset[first : stop + 1] - low, **columns)
    problems = {image - first: problem for image, problem in plan.problems.items() if first <= image < stop}
    attributes: dict[str, Any] = {
        "shard": number, "shards": len(whole.ends) - 1, "plan_sha256": whole.sha256,
        "plan_images": plan.images, "plan_boxes": plan.rows,
    }  # fmt: skip
    return replace(plan, table=part, sizes=plan.sizes[first:stop].copy(), problems=problems), attributes
