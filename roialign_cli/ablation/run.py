"""Run an ablation: one backbone pass per image, every variant pooled from the same maps and measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.ablation.grid import Variant, region_to_read
from roialign_cli.ablation.measure import METRICS, SHIFT_PIXELS, Exact, compare, samples_per_bin
from roialign_cli.ablation.probe import Probe
from roialign_cli.ablation.saved_features import SavedFeatures
from roialign_cli.ablation.summary import (
    Background,
    Measurements,
    Recommendation,
    Row,
    make_rows,
    recommend,
    summarise_background,
)
from roialign_cli.arrays import Integers
from roialign_cli.backbones import Backbone, load_backbone
from roialign_cli.backbones.base import Layer
from roialign_cli.config import Centers, Settings
from roialign_cli.errors import InputError
from roialign_cli.extraction.batches import load_batches, make_batches
from roialign_cli.extraction.plan import make_plan
from roialign_cli.extraction.provenance import provenance
from roialign_cli.inputs.boxes import read_boxes
from roialign_cli.inputs.images import ImageError, ImageSet, open_images
from roialign_cli.ops.dispatch import choose_kernel
from roialign_cli.regions.levels import region_levels
from roialign_cli.regions.pooling import pool, pool_rounded
from roialign_cli.regions.regions import Regions
from roialign_cli.regions.values import ValueReport
from roialign_cli.regions.views import LayerView, make_layer_views
from roialign_cli.system import allocator
from roialign_cli.system.devices import find_device, pooling_device
from roialign_cli.types import FileVersion, Plan, Progress

CHUNK_BYTES = 16 << 20  # of one variant's features that are compared at a time, so that they stay in the cache
TIMED_BYTES = 64 << 20  # of features for which a variant is timed
TIMED_BOXES = 1000  # at most
REPEATS = 5  # of the timing, over the first images; variants take turns
CHECKPOINT_SECONDS = 10.0

Geometry = tuple[str, tuple[int, int], bool, Centers]  # region, output size, aligned, centers
Take = Callable[[int, str, int, Tensor, Tensor | None], None]  # variant, layer, first row, features, levels


@dataclass(frozen=True)
class Ablation:
    """Hold the result, as it is printed, written and drawn."""

    rows: list[Row]
    recommendations: list[Recommendation]
    tolerance: float
    images: int
    total_images: int
    failures: dict[str, str]
    finished: bool
    probe: dict[str, Any] | None
    background: Background | None  # where boxes are compared with another kind of region
    value_report: ValueReport  # odd values of the saved features
    provenance: dict[str, Any]


def ablate(
    images: ImageSet | str | Path,
    boxes: Path | None,
    settings: Settings,
    variants: Sequence[Variant],
    *,
    tolerance: float = 0.01,
    probe: bool = False,
    save: Callable[[Variant], Path] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_checkpoint: Callable[[Ablation], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Ablation:
    """Measure every variant on every box; call `on_checkpoint` with the result so far every CHECKPOINT_SECONDS.

    With `save`, the features of each variant are written to the file that it returns. Raises RoialignError.
    """
    images = open_images(images)
    settings = dataclasses.replace(settings, region=region_to_read(variants))
    table = read_boxes(boxes, images, settings)
    plan = make_plan(images, table, settings)
    device = find_device(settings.device)
    for variant in variants:
        if variant.op == "roi_align":
            choose_kernel(settings.kernel, pooling_device(device), variant.settings.mode)
    choose_kernel(settings.kernel, pooling_device(device), "exact")
    measured = any(variant.settings.centers == "measured" for variant in variants)
    backbone = load_backbone(dataclasses.replace(settings, centers="measured" if measured else "assumed"))
    failures = {plan.table.names[image]: problem for image, problem in plan.problems.items()}
    both = len({variant.settings.region for variant in variants}) > 1
    found = _no_measurements(plan, len(variants), len(backbone.layers), probe=probe, background=both)
    made_by = provenance(settings, plan, backbone)
    with_boxes = int((np.diff(plan.table.offset) > 0).sum())

    def result(measured: int, *, finished: bool) -> Ablation:
        rows = make_rows(found, variants, backbone.layers)
        scored = found.probe.score(0, 0) if found.probe else None
        about = {"chance": scored.chance, "boxes": scored.boxes, "classes": scored.classes} if scored else None
        return Ablation(
            rows,
            recommend(rows, tolerance),
            tolerance,
            measured,
            with_boxes,
            failures,
            finished,
            about,
            summarise_background(found, settings.region, backbone.layers),
            features.report,
            made_by,
        )

    def fail(image: int, error: ImageError) -> None:
        if settings.on_error == "stop":
            raise error.with_name(plan.table.names[image])
        failures[plan.table.names[image]] = error.message
        features.failed(image, error.message)

    done, finished, checkpoint = 0, True, time.monotonic()
    with allocator.retain_freed_memory(), SavedFeatures.open(plan, backbone, variants, save) as features:
        for image, version, views in _views(images, plan, settings, backbone, device, fail):
            rows = np.arange(*plan.table.offset[image : image + 2].tolist())
            with torch.inference_mode():
                for index, view in enumerate(views):
                    _time(view, variants, found.milliseconds, index, max(1, -(-REPEATS // with_boxes)))
                    _measure(view, variants, found, index, rows, partial(features.rows, image))
            errors = found.values[:, :, METRICS.index("error"), rows]
            strange = ~np.isfinite(errors).all(axis=(0, 1), keepdims=True)
            if strange.any():
                fail(image, _not_finite(int(strange.sum()), len(rows)))
                if found.probe:
                    found.probe.drop(rows)
            else:
                features.done(image, version)
                done += 1
                found.measured[rows] = True
            on_progress(Progress(done, with_boxes, int(found.measured.sum()), plan.rows, 0))
            if time.monotonic() - checkpoint > CHECKPOINT_SECONDS:
                on_checkpoint(result(done, finished=False))
                checkpoint = time.monotonic()
            if should_stop() and done < with_boxes:
                finished = False
                break
    return result(done, finished=finished)


def _no_measurements(plan: Plan, variants: int, layers: int, *, probe: bool, background: bool) -> Measurements:
    """Return measurements without any value yet."""
    labels = plan.table.labels
    if probe and labels is None:
        hint = 'native boxes: {"a.jpg": {"boxes": [...], "labels": [...]}}; COCO files have them'
        raise InputError("probe-labels", "probe: expected boxes with labels, found none in the box file", hint)
    classes = None if labels is None else np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return Measurements(
        values=np.full((variants, layers, len(METRICS), plan.rows), np.nan, np.float32),
        measured=np.zeros(plan.rows, np.bool_),
        levels=np.zeros((layers, plan.rows), np.uint8),
        boxes=plan.table.boxes,
        milliseconds=[[[] for _ in range(layers)] for _ in range(variants)],
        probe=Probe(classes, variants, layers) if probe and classes is not None else None,
        background=np.full((layers, 2, plan.rows), np.nan, np.float32) if background else None,
    )


def _views(
    images: ImageSet,
    plan: Plan,
    settings: Settings,
    backbone: Backbone,
    device: torch.device,
    fail: Callable[[int, ImageError], None],
) -> Iterator[tuple[int, FileVersion, list[LayerView]]]:
    """Yield images one by one with the views of their layers; call `fail` for those that cannot be read."""
    backbone.to(device)
    one_by_one = make_batches(plan, 1)
    for batch, (decoded,) in load_batches(images, plan, one_by_one, settings):
        (image,) = batch.images
        if isinstance(decoded, ImageError):
            fail(image, decoded)
            continue
        plan.sizes[image] = decoded.pixels.shape[:2]
        yield (
            image,
            decoded.version,
            make_layer_views(decoded.pixels, plan.table, image, backbone, settings, device),
        )


def _not_finite(strange: int, boxes: int) -> ImageError:
    """Return the error of an image with features that are not finite in some of its boxes."""
    message = f"expected finite features, found NaN or infinity in {strange} of {boxes} boxes"
    return ImageError("features-nonfinite", message, "check the weights, or try --precision float32")


def _measure(
    view: LayerView, variants: Sequence[Variant], found: Measurements, index: int, rows: Integers, take: Take
) -> None:
    """Measure every variant on the rows [K] of a view, in chunks, so that memory does not grow with their number."""
    if view.levels is not None:
        found.levels[index, rows] = view.levels.numpy()
    step = max(1, CHUNK_BYTES // max(_row_bytes(view.layer, variant) for variant in variants))
    for begin in range(0, len(rows), step):
        some, numbers = view[begin : begin + step], rows[begin : begin + step]
        shifted = some.shifted(SHIFT_PIXELS)
        exact: dict[Geometry, Exact] = {}
        best: Centers = "measured" if some.layer.offsets else "assumed"
        for v, variant in enumerate(variants):
            geometries = (variant.settings.aligned, variant.settings.centers), (True, best)
            own, centred = (_exact(some, shifted, variant, *geometry, exact) for geometry in geometries)
            pooled = _pool(some, variant, some.regions)
            metrics = compare(pooled, _pool(some, variant, shifted), own, centred)
            found.values[v, index][:4, numbers] = metrics.float().cpu().numpy()
            found.values[v, index][4, numbers] = samples_per_bin(variant, some.layer, some.regions, some.levels).numpy()
            if found.probe:
                found.probe.add(v, index, numbers, pooled)
            take(v, some.layer.name, int(numbers[0]), pooled, some.levels)
        if found.background is not None:
            found.background[index][:, numbers] = _background(some, shifted, variants, exact)


def _background(
    view: LayerView, shifted: Regions, variants: Sequence[Variant], exact: dict[Geometry, Exact]
) -> npt.NDArray[np.float32]:
    """Return how much background boxes mix in, [2, K], in the geometry of the first variant of another kind of region."""
    one = next(variant for variant in variants if variant.settings.region != "box")
    geometry = one.settings.aligned, one.settings.centers
    box = dataclasses.replace(one, settings=dataclasses.replace(one.settings, region="box"))
    theirs, ours = (_exact(view, shifted, variant, *geometry, exact).features for variant in (box, one))
    whole = Regions(view.regions.rois).areas()
    outside = torch.where(whole > 0, 1 - view.regions.areas() / whole, torch.nan).clamp_min(0)
    norm = ours.norm(dim=1)
    distance = torch.where(norm > 0, (theirs - ours).norm(dim=1) / norm, torch.nan)
    found: npt.NDArray[np.float32] = torch.stack([outside.float(), distance.float().cpu()]).numpy()
    return found


def _exact(
    view: LayerView, shifted: Regions, variant: Variant, aligned: bool, centers: Centers, known: dict[Geometry, Exact]
) -> Exact:
    """Return the exact features of a geometry, which is computed once for all variants that share it."""
    key = (variant.settings.region, variant.settings.output_size, aligned, centers)
    if key not in known:
        settings = dataclasses.replace(
            variant.settings, mode="exact", sampling_ratio=0, aligned=aligned, centers=centers
        )
        exact = Variant("roi_align", settings)
        known[key] = Exact.from_features(_pool(view, exact, view.regions), _pool(view, exact, shifted))
    return known[key]


def _pool(view: LayerView, variant: Variant, regions: Regions) -> Tensor:
    """Return float32 features [K, C, PH, PW] pooled by a variant."""
    if variant.op == "roi_pool":
        return pool_rounded(view.maps, view.layer, regions.rois, view.levels, variant.settings.output_size)
    layer, levels = view.layer, view.levels
    if variant.settings.region == "box" and (regions.rotated is not None or regions.masks is not None):
        regions = Regions(regions.rois)
        levels = region_levels(Regions(view.regions.rois), layer, variant.settings)
    if variant.settings.centers == "assumed":
        layer = dataclasses.replace(layer, offsets=())
    return pool(view.maps, layer, regions, levels, variant.settings).features


def _time(
    view: LayerView, variants: Sequence[Variant], milliseconds: list[list[list[float]]], index: int, repeats: int
) -> None:
    """Time each variant on the boxes of a view, repeated up to TIMED_BOXES; variants take turns."""
    known = len(milliseconds[0][index])
    for repeat in range(known, min(known + repeats, REPEATS)):
        for i in range(len(variants)):
            v = (i + repeat) % len(variants)
            count = max(1, min(TIMED_BOXES, TIMED_BYTES // _row_bytes(view.layer, variants[v])))
            many = view[torch.arange(count) % len(view.regions)]
            if repeat == 0:
                _pool(view, variants[v], view.regions)  # the first call compiles or loads the kernel
            begin = time.perf_counter()
            _pool(many, variants[v], many.regions)
            if view.map_of(0)[0].is_cuda:
                torch.cuda.synchronize()
            milliseconds[v][index].append((time.perf_counter() - begin) * 1e6 / count)


def _row_bytes(layer: Layer, variant: Variant) -> int:
    """Return the bytes of one box's float32 features."""
    height, width = variant.settings.output_size
    return 4 * layer.channels * height * width
