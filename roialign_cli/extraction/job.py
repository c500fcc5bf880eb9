"""Prepare a job: everything that a run needs, checked before the first image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from roialign_cli.backbones import Backbone, load_backbone
from roialign_cli.config import Settings
from roialign_cli.extraction.provenance import provenance
from roialign_cli.extraction.shards import Shard, shard_plan, split_plan
from roialign_cli.inputs.images import ImageSet
from roialign_cli.ops.dispatch import choose_kernel
from roialign_cli.regions.pooling import PooledLayer, pooled_layers
from roialign_cli.store.layout import Layout, check_space
from roialign_cli.system.devices import find_devices
from roialign_cli.types import Plan


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
    choose_kernel(settings.kernel, find_devices(settings.device, settings.processes)[0], settings.mode)
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
    kernel = choose_kernel(settings.kernel, devices[0], settings.mode)
    made_by = {**provenance(settings, plan, backbone), "kernel": f"{kernel} on {devices[0].type}", **attributes}
    layout = make_layout(backbone, settings, made_by)
    free = check_space(output, 0 if output.exists() else layout.feature_bytes(plan.rows))
    return Job(images, output, settings, plan, backbone, layout, devices, free)


def make_layout(backbone: Backbone, settings: Settings, attributes: Mapping[str, Any]) -> Layout:
    """Return the layout of a feature file: the shape of a row on each layer, its type, and whether levels are stored."""

    def row_shape(pooled: PooledLayer) -> tuple[int, ...]:
        if settings.head != "none":
            return (backbone.head_channels,)
        bins = pooled.settings.output_size if settings.reduce == "none" else ()
        return (backbone.layers[pooled.index].channels, *bins)

    return Layout(
        layers={pooled.name: row_shape(pooled) for pooled in pooled_layers(backbone.layers, settings)},
        dtype=settings.dtype,
        levels=any(len(layer.strides) > 1 for layer in backbone.layers),
        attributes=dict(attributes),
    )
