"""Summarise measurements of boxes: a row per setting and class of boxes, and which setting to take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roialign_cli.ablation.grid import Variant, alignment
from roialign_cli.ablation.measure import METRICS
from roialign_cli.ablation.probe import Probe
from roialign_cli.arrays import Floats
from roialign_cli.backbones.base import Layer

SMALL, LARGE = 32**2, 96**2  # areas in pixels of the original image that separate COCO's classes of size
INTEGRAL_METRICS = ("error", "cosine")  # compare features with the exact integral
TIMING_NOISE = 1.15  # times within this factor count as equal, and the smaller error decides
Row = dict[str, Any]


@dataclass(frozen=True)
class Measurements:
    """Hold values [V, L, METRICS, N] of V variants on L layers, NaN where unknown; measured [N]; levels [L, N].

    milliseconds [V][L] are times per 1000 boxes, one per repeat. boxes [N, 4] are in pixels of the original image.
    background [L, 2, N], where boxes are compared with another kind of region: the share of each box that lies outside of its
    region, and the relative distance of the exact features of the box from those of the region.
    """

    values: Floats
    measured: npt.NDArray[np.bool_]
    levels: npt.NDArray[np.uint8]
    boxes: Floats
    milliseconds: list[list[list[float]]]
    probe: Probe | None
    background: Floats | None = None


@dataclass(frozen=True)
class Background:
    """Say how much background boxes mix in, in the mean over boxes where it is known, see `Measurements`; distance by layer."""

    region: str
    outside: float | None
    distance: dict[str, float | None]


@dataclass(frozen=True)
class Recommendation:
    """Hold the setting to take for one geometry, or None if none is within the tolerance, and why."""

    geometry: str
    setting: str | None
    label: str
    reason: str


def make_rows(found: Measurements, variants: Sequence[Variant], layers: Sequence[Layer]) -> list[Row]:
    """Return one row per layer, variant and class of boxes; unknown numbers are None."""
    rows: list[Row] = []
    for index, layer in enumerate(layers):
        classes = list(_classes(found, index, layer))
        for v, variant in enumerate(variants):
            times = found.milliseconds[v][index]
            settings = variant.settings
            score = found.probe.score(v, index) if found.probe else None
            sampled = variant.op == "roi_align" and settings.mode != "exact"
            for name, chosen in classes:
                rows.append({
                    "layer": layer.name, "setting": variant.name, "op": variant.op, "region": settings.region,
                    "output_size": variant.size,
                    "sampling_ratio": settings.sampling_ratio if sampled else None,
                    "aligned": settings.aligned, "centers": settings.centers, "mode": settings.mode,
                    "class": name, "boxes": int(chosen.sum()),
                    **_statistics(found.values[v, index][:, chosen], comparable=settings.mode != "max"),
                    "ms_per_1000": float(np.median(times)) if times else None,
                    "bytes_per_box": layer.channels * math.prod(settings.output_size) * np.dtype(settings.dtype).itemsize,
                    "probe_accuracy": score.accuracy if score and name == "all" else None,
                })  # fmt: skip
    return rows


def summarise_background(found: Measurements, region: str, layers: Sequence[Layer]) -> Background | None:
    """Return how much background boxes mix in, or None if boxes are not compared with another kind of region."""
    if found.background is None or not found.measured.any():
        return None
    outside, distance = found.background[0, 0, found.measured], found.background[:, 1, found.measured]
    return Background(
        region,
        _known_mean(outside),
        {layer.name: _known_mean(of_layer) for layer, of_layer in zip(layers, distance, strict=True)},
    )


def _known_mean(values: Floats) -> float | None:
    """Return the mean of the values that are not NaN, or None if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else None


def _classes(found: Measurements, index: int, layer: Layer) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yield classes of measured boxes: all, those of each size, those of each level."""
    area = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    yield "all", found.measured
    yield "small", found.measured & (area < SMALL)
    yield "medium", found.measured & (area >= SMALL) & (area < LARGE)
    yield "large", found.measured & (area >= LARGE)
    if len(layer.strides) > 1:
        for level, stride in enumerate(layer.strides):
            yield f"stride {stride}", found.measured & (found.levels[index] == level)


def _statistics(values: Floats, *, comparable: bool) -> dict[str, float | None]:
    """Return columns for METRICS [M, n]: mean, median, the bad tail and the worst value.

    Without `comparable`, error and cosine stay unknown: a maximum approximates no integral.
    """
    columns: dict[str, float | None] = {}
    for name, of_boxes in zip(METRICS, values, strict=True):
        known = of_boxes[~np.isnan(of_boxes)].astype(np.float64)
        if name in INTEGRAL_METRICS and not comparable:
            known = known[:0]
        tail = ("p5", 5, "min", 0) if name == "cosine" else ("p95", 95, "max", 100)
        quantiles = {"median": 50, tail[0]: tail[1], tail[2]: tail[3]} if name not in METRICS[3:] else {"median": 50}
        columns[f"{name}_mean"] = float(known.mean()) if len(known) else None
        for label, percent in quantiles.items():
            columns[f"{name}_{label}"] = float(np.percentile(known, percent)) if len(known) else None
    return columns


def setting_label(row: Row) -> str:
    """Return the setting of a row in words: 7x7, ratio 2, aligned."""
    name = str(row["setting"]).removeprefix("roi_align-").removesuffix("-avg").replace("roi_pool", "RoI Pool")
    return name.replace("_", " ").replace("-", ", ")


def recommend(rows: Sequence[Row], tolerance: float) -> list[Recommendation]:
    """Return for each output size and place of the cells the fastest setting whose mean error is within the tolerance.

    Settings are compared only if they approximate the same integral; over several layers the worst error and the sum of
    times count. Maxima and RoI Pool approximate no integral and are not recommended.
    """
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if (
            row["class"] == "all"
            and row["op"] == "roi_align"
            and row["mode"] != "max"
            and row["error_mean"] is not None
        ):
            geometry = f"{row['output_size']}, {alignment(aligned=row['aligned'], centers=row['centers'])}"
            geometry = geometry if row["region"] == "box" else f"{row['region']}, {geometry}"
            groups.setdefault(geometry, {}).setdefault(row["setting"], []).append(row)
    return [_choose(geometry, settings, tolerance) for geometry, settings in groups.items()]


def _choose(geometry: str, settings: dict[str, list[Row]], tolerance: float) -> Recommendation:
    """Choose among the settings of one geometry."""
    error = {name: max(row["error_mean"] for row in rows) for name, rows in settings.items()}
    cost = {name: sum(row["ms_per_1000"] or 0.0 for row in rows) for name, rows in settings.items()}
    good = [name for name in settings if error[name] <= tolerance]
    if not good:
        best = min(error, key=error.__getitem__)
        nearest = setting_label(settings[best][0])
        missed = f"none is within {tolerance:.2%} of exact; {nearest} is nearest with {error[best]:.2%}"
        return Recommendation(geometry, None, "none", f"{missed}: try a higher sampling ratio, or mode exact")
    fastest = min(cost[name] for name in good)
    chosen = min((name for name in good if cost[name] <= TIMING_NOISE * fastest), key=error.__getitem__)
    reason = f"mean error {error[chosen]:.2%}, {cost[chosen]:.1f} ms per 1000 boxes"
    cheaper = [name for name in settings if TIMING_NOISE * cost[name] < cost[chosen]]
    if cheaper:
        near = min(cheaper, key=error.__getitem__)
        reason += f"; faster settings have errors of {error[near]:.2%} or more ({setting_label(settings[near][0])})"
    elif len(settings) > 1:
        reason += "; none is faster"
    return Recommendation(geometry, chosen, setting_label(settings[chosen][0]), reason)
