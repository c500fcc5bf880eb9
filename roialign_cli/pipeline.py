"""extract(): read and check everything, lay the file out whole, fill it, say what came of it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from roialign_cli import config, memory, ops
from roialign_cli.backbones import Backbone, load_backbone
from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError
from roialign_cli.filling import Filling, Job, Tally, batches_left, settle_known
from roialign_cli.flaws import Flaws
from roialign_cli.inputs.images import decoding
from roialign_cli.planning import plan_run
from roialign_cli.processes import fill_in_processes
from roialign_cli.resuming import go_on
from roialign_cli.sharding import Shard, parse_shard, part_of, split
from roialign_cli.store.layout import Layout, check_space
from roialign_cli.store.output import locked, open_output
from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.schema import DONE, FAILED, PENDING
from roialign_cli.structures import Plan, Progress, Summary
from roialign_cli.version import __version__


def extract(
    images: str | Path,
    boxes: str | Path | None,
    output: str | Path,
    *,
    shard: str | None = None,
    config_name: str | None = None,
    overwrite: bool = False,
    strict: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Summary:
    """Extract the region features of every box into a feature file; the same call goes on where a former one ended.

    Args:
        images: folder of images.
        boxes: box file or folder of annotations; None with `grid`.
        output: the feature file to make.
        shard: `I/N`, to do one of N parts into a file of its own, `auto` or `auto/N`; see `sharding.parse_shard`.
        config_name: a named configuration or the path of a YAML file.
        overwrite: replace an existing output.
        strict: refuse to go on with a file of other versions, or whose images have changed, instead of warning.
        on_progress: called after each batch.
        should_stop: asked before each batch; True ends the run early, resumable.
        **settings: fields of `Settings`, in any form the command line takes.

    Raises:
        RoialignError: see the subclasses in `errors`; what is marked done in the file stays valid.
    """
    chosen = config.load(config_name, settings)
    part = parse_shard(shard) if shard else None
    with decoding(chosen.max_pixels):
        plan = plan_run(Path(images), None if boxes is None else Path(boxes), Path(output), chosen)
        job = prepare_job(plan, Path(images), Path(output), chosen, part)
        return run_job(job, overwrite=overwrite, strict=strict, on_progress=on_progress, should_stop=should_stop)


def prepare_job(plan: Plan, folder: Path, output: Path, settings: Settings, shard: Shard | None = None) -> Job:
    """Load the backbone and check everything that is left to check before the first image.

    Of a shard, the job has its part of the plan, and a file of its own beside `output`.
    """
    ops.choose(settings.kernel, find_devices(settings.device, settings.processes)[0], settings.mode)
    backbone = load_backbone(settings)
    if shard is None:
        return make_job(plan, folder, output, settings, backbone)
    part, about = part_of(split(plan, shard.count, backbone.preprocessing.resize), shard.number)
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
    kernel = ops.choose(settings.kernel, devices[0], settings.mode)
    bins = settings.output_size if settings.reduce == "none" else ()
    layout = Layout(
        layers={layer.name: backbone.row_shape(layer, bins) for layer in backbone.layers},
        dtype=settings.dtype,
        levels=any(len(layer.strides) > 1 for layer in backbone.layers),
        attributes={**provenance(settings, plan, backbone), "kernel": f"{kernel} on {devices[0].type}", **about},
    )
    free = check_space(output, 0 if output.exists() else layout.feature_bytes(plan.rows))
    return Job(folder, output, settings, plan, backbone, layout, devices, free)


def run_job(
    job: Job,
    *,
    overwrite: bool,
    strict: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    patience: float = 0.0,
) -> Summary:
    """Fill the output of a job, or what is missing of it; where another run has it, wait for so many seconds."""
    started = time.monotonic()
    with locked(job.output, patience), memory.kept():
        status = open_output(job.output, job.plan, job.layout, overwrite=overwrite)
        done = status == DONE
        if (status != PENDING).any():
            done = go_on(job.output, job.folder, job.plan, job.layout, strict=strict)
        finished_before, flaws = bool(done.all()), Flaws()
        if not finished_before:
            tally = Tally(job, done, on_progress)
            settle_known(job, tally)
            flaws = _fill(job, tally, should_stop)
    return _summarise(job, flaws, finished_before, time.monotonic() - started)


def _fill(job: Job, tally: Tally, should_stop: Callable[[], bool]) -> Flaws:
    """Fill what is not settled, in this process or in several."""
    if len(job.devices) > 1:
        return fill_in_processes(job, tally, should_stop)
    done = tally.settled.copy()
    filling = Filling(job, job.devices[0], done, tally.settle)
    filling.fill(batches_left(job, done), should_stop)
    return filling.flaws


def find_devices(names: str, processes: int = 0) -> tuple[torch.device, ...]:
    """A device for each process: of `auto`, `cpu`, `cuda:all` or `cuda:0,2`, in turn. 0: as many processes as devices.

    Raises ConfigError: a device is not here, or there are fewer processes than devices.
    """
    kind, _, numbers = names.partition(":")
    if kind == "cuda" and numbers == "all":
        listed = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda"]
    else:
        listed = [f"{kind}:{number}" if number else kind for number in numbers.split(",")]
    devices = tuple(find_device(name) for name in listed)
    if len(set(devices)) < len(devices):
        raise ConfigError("device-unknown", f"device: expected each device once, found {names!r}")
    if 0 < processes < len(devices):
        message = f"processes: expected at least one for each of {len(devices)} devices, found {processes}"
        raise ConfigError("config-value", message)
    return tuple(itertools.islice(itertools.cycle(devices), processes or len(devices)))


def find_device(name: str) -> torch.device:
    """One device of a setting; ConfigError if it is not here."""
    expected = "expected auto, cpu, cuda, cuda:all or cuda:0,2"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("device-unknown", f"device: {expected}, found {name!r}") from None
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        found = (
            f"{torch.cuda.device_count()} CUDA devices are here" if device.type == "cuda" else "it is of another kind"
        )
        raise ConfigError("device-unknown", f"device: {expected}, found {name!r}: {found}")
    return device


def provenance(settings: Settings, plan: Plan, backbone: Backbone) -> dict[str, Any]:
    """The attributes that say what made the file."""
    return {
        "created_by": f"roialign {__version__}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": json.dumps(settings.identity()),
        "backbone": backbone.name,
        "weights": backbone.weights,
        "weights_sha256": backbone.weights_sha256,
        "boxes_sha256": plan.table.sha256,
        "table_sha256": plan.table_sha256,
        "strides": json.dumps({layer.name: layer.strides for layer in backbone.layers}),
        "preprocessing": json.dumps(asdict(backbone.preprocessing)),
        "versions": json.dumps({name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")}),
    }


def _summarise(job: Job, flaws: Flaws, finished_before: bool, seconds: float) -> Summary:
    plan = job.plan
    with FeatureFile(job.output) as file:
        status, failures = file.status, file.errors
    done, failed = int((status == DONE).sum()), int((status == FAILED).sum())
    return Summary.of(
        plan,
        output=str(job.output),
        done=done,
        failed=failed,
        nonfinite_values=flaws.not_finite,
        saturated_values=flaws.saturated,
        bytes=job.layout.feature_bytes(plan.rows),
        seconds=round(seconds, 3),
        already_finished=finished_before,
        features={layer: (plan.rows, *shape) for layer, shape in job.layout.layers.items()},
        failures=failures,
    )
