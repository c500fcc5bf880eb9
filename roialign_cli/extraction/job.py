"""Everything that a run needs, checked before the first image."""

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
from roialign_cli.extraction.shards import Shard, shard_plan, split
from roialign_cli.ops.dispatch import choose_kernel
from roialign_cli.store.layout import Layout, check_space
from roialign_cli.system.devices import find_devices
from roialign_cli.types import Plan


@dataclass(frozen=True)
class Job:
    """Everything a run needs, checked: nothing has been written yet. One process for each of `devices`."""

    folder: Path
    output: Path
    settings: Settings
    plan: Plan
    backbone: Backbone
    layout: Layout
    devices: tuple[torch.device, ...]
    free_bytes: int


def prepare_job(plan: Plan, folder: Path, output: Path, settings: Settings, shard: Shard | None = None) -> Job:
    """Load the backbone and check everything that is left to check before the first image.

    Of a shard, the job has its part of the plan, and a file of its own beside `output`.
    """
    choose_kernel(settings.kernel, find_devices(settings.device, settings.processes)[0], settings.mode)
    backbone = load_backbone(settings)
    if shard is None:
        return make_job(plan, folder, output, settings, backbone)
    part, about = shard_plan(split(plan, shard.count, backbone.preprocessing.resize), shard.number)
    return make_job(part, folder, shard.path(output), settings, backbone, about)


def make_job(
    plan: Plan,
    folder: Path,
    output: Path,
    settings: Settings,
    backbone: Backbone,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> Job:
    """The same with a backbone that the settings made; `about` are more attributes for the file."""
    devices = find_devices(settings.device, settings.processes)
    kernel = choose_kernel(settings.kernel, devices[0], settings.mode)
    bins = settings.output_size if settings.reduce == "none" else ()
    layout = Layout(
        layers={layer.name: backbone.row_shape(layer, bins) for layer in backbone.layers},
        dtype=settings.dtype,
        levels=any(len(layer.strides) > 1 for layer in backbone.layers),
        attributes={**provenance(settings, plan, backbone), "kernel": f"{kernel} on {devices[0].type}", **about},
    )
    free = check_space(output, 0 if output.exists() else layout.feature_bytes(plan.rows))
    return Job(folder, output, settings, plan, backbone, layout, devices, free)
