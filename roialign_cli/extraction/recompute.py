"""Compute rows of a feature file again, here and now, and say how far they are from the stored ones and what has changed."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import Integers, PackedNames
from roialign_cli.backbones import load_backbone
from roialign_cli.config import SETTING_NAMES, Settings, load
from roialign_cli.errors import OutputError
from roialign_cli.extraction.job import make_job
from roialign_cli.extraction.resume import version_differences
from roialign_cli.extraction.reuse import BOX_SETTINGS
from roialign_cli.extraction.run import run_job
from roialign_cli.inputs.images import ImageSet
from roialign_cli.inputs.images.file import has_changed
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE
from roialign_cli.types import BoxTable, FileVersion, Plan

# Differences relative to the largest value of an image that rounding explains: another processor, kernel or version.
TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
STORED_TOLERANCES = {"float32": 0.0, "float16": 1e-3}  # and the rounding of what is stored


@dataclass(frozen=True)
class Difference:
    """How far an image's features are from those computed now: see `_distance`."""

    image: str
    boxes: int
    difference: float
    image_changed: bool


@dataclass(frozen=True)
class Recomputation:
    """Hold the result: the images that were tried, the tolerance, and what has changed since the file was made."""

    images: list[Difference]
    failures: dict[str, str]
    tolerance: float
    changed: list[str]

    @property
    def beyond(self) -> list[Difference]:
        """Return the images that differ by more than the tolerance."""
        return [one for one in self.images if not one.difference <= self.tolerance]


def recompute(
    file: FeatureFile, images: ImageSet, count: int, seed: int = 0, others: Mapping[str, Any] | None = None
) -> Recomputation:
    """Compute the rows of `count` random images of a file again, in a temporary file, and compare.

    `others` are settings that replace those of the file, such as the place of the weights. Raises OutputError for masks and for
    vectors of a detector's proposals, which files do not hold, and what a run raises.
    """
    settings = _settings(file, others or {})
    if file.settings.get("detect") and settings.head == "box":
        message = f"{file.path}: expected features of the boxes in the file, found vectors of a detector's proposals"
        raise OutputError("recompute-proposals", f"{message}, which files do not hold")
    if settings.region == "mask":
        message = f"{file.path}: expected boxes, rotated boxes or points to compute again, found masks"
        raise OutputError("recompute-masks", f"{message}, which files do not hold")
    candidates = np.flatnonzero((file.status == DONE) & (np.diff(file.offset) > 0))
    chosen = np.sort(np.random.default_rng(seed).choice(candidates, min(count, len(candidates)), replace=False))
    plan = _plan(file, chosen)
    backbone = load_backbone(settings)
    with tempfile.TemporaryDirectory(prefix="roialign-") as folder:
        job = make_job(plan, images, Path(folder) / "again.h5", settings, backbone)
        changed = _changed(file, job.layout.attributes)
        summary = run_job(job, overwrite=False)
        with FeatureFile(job.output) as again:
            found = [_compare(file, again, images, name) for name in again.done_names]
    tolerance = TOLERANCES[settings.precision] + STORED_TOLERANCES[settings.dtype]
    return Recomputation(found, summary.failures, tolerance, changed)


def _settings(file: FeatureFile, others: Mapping[str, Any]) -> Settings:
    """Return the settings that made a file, without those that choose boxes, which are in it."""
    stated = {name: value for name, value in file.settings.items() if name in SETTING_NAMES}
    chosen = {name: getattr(Settings(), name) for name in BOX_SETTINGS - {"crowd", "region_missing"}}
    given = {name: value for name, value in others.items() if value is not None}
    return dataclasses.replace(load(None, {**stated, **chosen, **given}), on_nonfinite="keep", processes=1)


def _plan(file: FeatureFile, chosen: Integers) -> Plan:
    """Return some images of a file as a plan."""
    rows = np.concatenate([np.empty(0, np.int64), *(np.arange(*file.offset[i : i + 2]) for i in chosen.tolist())])

    def column(name: str) -> npt.NDArray[np.float32] | None:
        return np.array(file.dataset(name)[rows]) if name in file.extents else None

    table = BoxTable(
        PackedNames.from_strings(file.names[i] for i in chosen.tolist()),
        np.concatenate([[0], np.cumsum(np.diff(file.offset)[chosen])]),
        np.array(file.boxes[rows]),
        rotated=column("rotated"),
        points=column("points"),
    )
    return Plan(table, np.array(file.sizes[chosen]), {}, unused_images=0, outside_boxes=0, empty_boxes=0)


def _compare(file: FeatureFile, again: FeatureFile, images: ImageSet, name: str) -> Difference:
    """Compare an image's features with those computed now."""
    rows = file.rows(name)
    return Difference(name, rows.stop - rows.start, _distance(file, again, name), _has_changed(file, images, name))


def _distance(file: FeatureFile, again: FeatureFile, name: str) -> float:
    """Return the largest difference of an image's features over their largest finite value, of the layer where that is largest.

    Infinities of different signs, and values that are finite in one of both only, differ by 1.
    """
    worst = 0.0
    for layer in file.layers:
        stored = np.array(file.features(layer)[file.rows(name)], np.float64)
        now = np.array(again.features(layer)[again.rows(name)], np.float64)
        finite = np.isfinite(stored) & np.isfinite(now)
        gap = np.abs(stored[finite] - now[finite]).max(initial=0)
        largest = np.abs(stored[np.isfinite(stored)]).max(initial=1e-30)
        same = np.array_equal(stored[~finite], now[~finite], equal_nan=True)
        worst = max(worst, float(gap / largest), 0.0 if same else 1.0)
    return worst


def _has_changed(file: FeatureFile, images: ImageSet, name: str) -> bool:
    """Return whether an image's file holds something else than what was read, if the feature file says what that was."""
    if "images/sha256" not in file.extents:
        return False
    place = file.names.index(name)
    size, modified, digest = (file.dataset(f"images/{part}")[place] for part in ("file_size", "modified", "sha256"))
    return has_changed(images.file(name), FileVersion(int(size), int(modified), digest.tobytes()))


def _changed(file: FeatureFile, now: Mapping[str, Any]) -> list[str]:
    """Return what else than images has changed since a file was made."""
    found = version_differences(file.attributes, now)
    for name in ("weights_sha256", "deform_sha256"):
        if file.attributes.get(name, "") != now.get(name, ""):
            found.append("the weights" if name == "weights_sha256" else "the head that moves bins")
    processor = file.attributes.get("processor", now["processor"])  # older files do not say
    if processor != now["processor"]:
        found.append(f"the processor was {processor}, is {now['processor']}")
    before, after = file.settings, json.loads(now["config"])
    for name in ("decoder", "weights"):
        if name in before and before[name] != after[name]:
            found.append(f"{name} was {before[name]}, is {after[name]}")
    return found
