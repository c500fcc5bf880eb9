"""Prepare a job: everything that a run needs, checked before the first image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from roialign_cli.backbones import Backbone, load_backbone
from roialign_cli.config import Settings
from roialign_cli.errors import KernelError
from roialign_cli.extraction.batches import Batch, BatchLimit, make_batches
from roialign_cli.extraction.provenance import provenance
from roialign_cli.extraction.shards import Shard, shard_plan, split_plan
from roialign_cli.inputs.images import ImageSet
from roialign_cli.ops.dispatch import choose_kernel
from roialign_cli.regions.pooling import PooledLayer, pooled_channels, pooled_layers
from roialign_cli.regions.resize import resized
from roialign_cli.store.layout import Layout, check_space
from roialign_cli.system.devices import find_devices, memory_bytes, pooling_device, processor_name
from roialign_cli.types import Plan

# Of a GPU, for each time that a batch has the pixels of a batch on the CPU. A ResNet-50 with a pyramid takes a tenth of it.
BATCH_MEMORY_BYTES = 8 << 30
GPU_BATCH_IMAGES = (
    8  # at most; more keep a GPU no busier, but it waits longer for the first batch and the disk for the last
)


@dataclass(frozen=True)
class Job:
    """Hold everything that a run needs; nothing has been written yet. One process works for each of `devices`."""

    images: ImageSet
    output: Path
    settings: Settings
    plan: Plan
    backbone: Backbone
    layout: Layout
    devices: tuple[torch.device, ...]
    free_bytes: int


def prepare_job(plan: Plan, images: ImageSet, output: Path, settings: Settings, shard: Shard | None = None) -> Job:
    """Load the backbone and return the job of a plan, or of one shard of it, which has a file of its own beside `output`.

    Raises RoialignError for anything that can be wrong before the first image.
    """
    # Before the backbone is loaded, which takes long: a kernel or device that is not available.
    device = find_devices(settings.device, settings.processes)[0]
    _choose_kernel(settings, pooling_device(device))
    backbone = load_backbone(settings)
    if shard is None:
        return make_job(plan, images, output, settings, backbone)
    part, attributes = shard_plan(split_plan(plan, shard.count, backbone.preprocessing.resize), shard.number)
    return make_job(part, images, shard.path(output), settings, backbone, attributes)


def make_job(
    plan: Plan,
    images: ImageSet,
    output: Path,
    settings: Settings,
    backbone: Backbone,
    attributes: Mapping[str, Any] = MappingProxyType({}),
) -> Job:
    """Return the job of a plan with a loaded backbone; `attributes` are added to those of the file."""
    devices = find_devices(settings.device, settings.processes)
    device = pooling_device(devices[0])
    kernel = _choose_kernel(settings, device)
    made_by = {
        **provenance(settings, plan, backbone),
        "kernel": f"{kernel} on {device.type}",
        "processor": processor_name(devices[0]),
        **attributes,
    }
    layout = make_layout(backbone, settings, plan, made_by)
    free = check_space(output, 0 if output.exists() or layout.sparse else layout.feature_bytes(plan.rows))
    return Job(images, output, settings, plan, backbone, layout, devices, free)


def _choose_kernel(settings: Settings, device: torch.device) -> str:
    """Return the name of the kernel that pools on a device. Raises KernelError if none can pool the regions there."""
    kernel = choose_kernel(settings.kernel, device, "exact" if settings.region == "points" else settings.mode)
    if kernel == "torchvision" and settings.region in ("rotated", "mask"):
        message = f"kernel: expected one for region {settings.region} on {device}, found only torchvision's for boxes"
        raise KernelError("kernel-region", message, "--device cpu")
    return kernel


def make_layout(backbone: Backbone, settings: Settings, plan: Plan, attributes: Mapping[str, Any]) -> Layout:
    """Return the layout of a feature file: the shape of a row on each layer, its type, and which tables it has."""

    def row_shape(pooled: PooledLayer) -> tuple[int, ...]:
        if settings.region == "points":
            assert plan.table.points is not None
            return (plan.table.points.shape[1], pooled_channels(backbone.layers[pooled.index], settings))
        if settings.head != "none":
            return (backbone.head_channels,)
        bins = pooled.settings.output_size if settings.reduce == "none" else ()
        return (pooled_channels(backbone.layers[pooled.index], settings), *bins)

    return Layout(
        layers={pooled.name: row_shape(pooled) for pooled in pooled_layers(backbone.layers, settings)},
        dtype=settings.dtype,
        levels=any(len(layer.strides) > 1 for layer in backbone.layers),
        attributes=dict(attributes),
        sparse=settings.detect,
        tables=region_tables(settings),
    )


def region_tables(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Return the row shapes of the tables that a run fills beside features; a single bin has no axes of its own."""
    tables: dict[str, tuple[int, ...]] = {}
    if settings.region == "mask":
        tables["coverage"] = () if settings.output_size == (1, 1) else settings.output_size
    if settings.region in ("rotated", "mask"):
        tables["area"] = ()
    return tables


def pending_batches(job: Job, done: npt.NDArray[np.bool_]) -> Iterator[Batch]:
    """Yield the batches of a job with at least one image that is not done; they are computed whole.

    The batches of a GPU are larger than those of the CPU, by its memory, because small ones would leave most of it idle.
    """
    limit, device = BatchLimit(), job.devices[0]
    if device.type == "cuda":
        times = max(1, memory_bytes(device) // BATCH_MEMORY_BYTES)
        limit = BatchLimit(limit.pixels * times, GPU_BATCH_IMAGES)
    resize = job.backbone.preprocessing.resize
    planned = make_batches(job.plan, job.settings.batch_size, lambda size: math.prod(resized(size, resize)), limit)
    return (batch for batch in planned if not done[list(batch.images)].all())
