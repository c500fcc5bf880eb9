"""The shards of a run as work for Ray: each actor keeps a backbone and fills shard after shard.

Ray places the actors, starts those again that die, elsewhere if their node is gone, and gives them their shard again, which
goes on where it ended. The plan is made once, here; with each shard travels its own part.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from roialign_cli.cluster.connection import (
    Cluster,
    SharedPaths,
    actors_and_cores,
    check_nodes,
    connected,
    marked,
    not_shared,
    result_of,
)
from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError, OutputError, RoialignError
from roialign_cli.extraction.shards import Shard, shard_plan, split_plan
from roialign_cli.store.merge import merge
from roialign_cli.store.output import locked
from roialign_cli.store.parts import Part
from roialign_cli.store.schema import DONE, FAILED
from roialign_cli.types import Plan, Progress, Summary

POLL_SECONDS = 1.0  # how often the shards are looked at for progress
PLACE_SECONDS = 1800.0  # for the first worker to begin: an autoscaler may have to start a machine
LOCK_SECONDS = 300.0  # for a worker cut off from the cluster to notice, and let go of its shard


def extract_on_cluster(
    plan: Plan,
    folder: Path,
    output: Path,
    settings: Settings,
    cluster: Cluster,
    *,
    join: bool = True,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """The features of a plan by way of shards, which are merged into the output and removed at the end, if `join`.

    The same call goes on where a former one ended. Raises what `fill_shards` and `merge` raise.
    """
    begun = time.monotonic()
    count = cluster.shards_of(plan.images)
    shards = [Shard(number, count) for number in range(1, count + 1)]
    paths = [shard.path(output) for shard in shards]
    if output.exists() and not overwrite and not any(path.exists() for path in paths):
        from roialign_cli.extraction.job import prepare_job
        from roialign_cli.extraction.run import run_job  # loads torch, which else the workers do

        job = prepare_job(plan, folder, output, settings)  # merged already: what failed is tried again here
        return run_job(job, overwrite=False, on_progress=on_progress, should_stop=should_stop)
    with locked(output):
        stale = (output, *paths) if overwrite else ()
        found = fill_shards(plan, shards, folder, output, settings, cluster, stale, on_progress, should_stop)
    summary = _summarise(plan, output, paths, found)
    if join and summary.finished:
        finished = merge(paths, output, should_stop=should_stop).finished
        if finished:
            for path in paths:
                path.unlink()
        summary = replace(summary, finished=finished, interrupted=not finished)
    return replace(summary, seconds=round(time.monotonic() - begun, 3))


def fill_shards(
    plan: Plan,
    shards: Sequence[Shard],
    folder: Path,
    output: Path,
    settings: Settings,
    cluster: Cluster,
    stale: Sequence[Path],
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> list[Summary]:
    """Fill all shards of a plan; what came of them, fewer if told to stop. Stale files are removed when a worker is ready.

    Raises ConfigError: Ray is not installed, not there, or has no room; OutputError: a node does not see the paths; and
    the first error of a shard.
    """
    found: list[Summary] = []
    with connected(cluster) as ray, marked(folder, output) as paths:
        check_nodes(ray, paths)
        actors, cores = actors_and_cores(ray, cluster)
        options = {"num_cpus": cores, "num_gpus": cluster.gpus_per_actor, "max_restarts": -1, "max_task_retries": -1}
        worker = ray.remote(**options)(_Worker)
        pool = [worker.remote(settings, paths, max(1, int(cores))) for _ in range(min(actors, len(shards)))]
        running = {actor.begin.remote(): actor for actor in pool}
        left: Iterator[tuple[Shard, Plan, dict[str, Any]]] | None = None
        watch, begun = _ShardWatcher(plan, [shard.path(output) for shard in shards]), time.monotonic()
        while len(found) < len(shards) and not should_stop():
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for reference in ready:
                actor, result = running.pop(reference), result_of(ray, reference)
                if isinstance(result, Summary):
                    found.append(result)
                elif left is None:  # the first that is there says how images are resized
                    for path in stale:
                        path.unlink(missing_ok=True)
                    left = _parts(plan, shards, result)
                if left is not None and (part := next(left, None)) is not None:
                    running[actor.fill.remote(*part)] = actor
                else:
                    ray.kill(actor)  # its place may be wanted for one whose node is gone
            if left is None and time.monotonic() - begun > PLACE_SECONDS:
                wanted = f"{cores:g} cores and {cluster.gpus_per_actor:g} GPUs"
                raise ConfigError("engine", f"engine: expected room for a worker of {wanted}, Ray found none")
            on_progress(watch.progress())
    return found


def _parts(plan: Plan, shards: Sequence[Shard], resize: tuple[int, int | None] | None) -> Iterator[Any]:
    """What a worker is told of each shard, made when it is wanted."""
    whole = split_plan(plan, len(shards), resize)
    return ((shard, *shard_plan(whole, shard.number)) for shard in shards)


class _Worker:
    """An actor: a backbone, and shards one after another. Errors are returned: Ray would wrap them and try again."""

    def __init__(self, settings: Settings, paths: SharedPaths, threads: int) -> None:
        import torch

        from roialign_cli.system import allocator

        torch.set_num_threads(threads)
        self._kept = ExitStack()  # memory is, from shard to shard, while this process lives
        self._kept.enter_context(allocator.retain_freed_memory())
        self._settings, self._paths = replace(settings, processes=0), paths  # this actor is one of the processes
        self._backbone: Any = None

    def begin(self) -> tuple[int, int | None] | RoialignError | None:
        """How its backbone has images resized."""
        from roialign_cli.backbones import load_backbone

        try:
            if problem_here := self._paths.problem_here():  # a node may have come after all were asked
                return not_shared(f"node {socket.gethostname()}", problem_here)
            self._backbone = load_backbone(self._settings)
        except RoialignError as error:
            return error
        resize: tuple[int, int | None] | None = self._backbone.preprocessing.resize
        return resize

    def fill(self, shard: Shard, plan: Plan, about: dict[str, Any]) -> Summary | RoialignError:
        """Fill a shard, or what is missing of it."""
        from roialign_cli.extraction.job import make_job
        from roialign_cli.extraction.run import run_job
        from roialign_cli.inputs.images import limit_pixels

        if self._backbone is None and isinstance(error := self.begin(), RoialignError):  # started again
            return error
        mine = replace(plan, sizes=plan.sizes.copy())  # what Ray shares cannot be written
        try:
            with limit_pixels(self._settings.max_pixels):
                output = shard.path(self._paths.output)
                job = make_job(mine, self._paths.folder, output, self._settings, self._backbone, about)
                return run_job(job, overwrite=False, patience=LOCK_SECONDS)
        except RoialignError as error:
            return error


class _ShardWatcher:
    """How far the shards are, as their files say."""

    def __init__(self, plan: Plan, paths: list[Path]) -> None:
        self._plan = plan
        self._paths = paths
        self._parts: dict[Path, Part] = {}

    def progress(self) -> Progress:
        images = boxes = stored = 0
        for path in self._paths:
            with suppress(OutputError):  # not there yet
                part = self._parts.get(path) or self._parts.setdefault(path, Part(path))
                settled = np.array(part.map("images/status")) > 0
                rows = int(np.diff(part.map("images/offset"))[settled].sum())
                images, boxes = images + int(settled.sum()), boxes + rows
                stored += rows * sum(
                    place.row_bytes for name, place in part.extents.items() if name.startswith("features")
                )
        return Progress(images, self._plan.images, boxes, self._plan.rows, stored)


def _summarise(plan: Plan, output: Path, paths: list[Path], found: list[Summary]) -> Summary:
    """The same as of one run, from the shards' files; counts of values are those of the shards filled now."""
    done = failed = 0
    failures: dict[str, str] = {}
    for path in paths:
        with suppress(OutputError):  # not begun
            part = Part(path)
            status = part.map("images/status")
            done, failed = done + int((status == DONE).sum()), failed + int((status == FAILED).sum())
            for i in np.flatnonzero(status == FAILED).tolist():
                failures[part.map("images/name")[i].decode()] = part.map("images/error")[i].decode("utf-8", "replace")
    shapes = found[0].features if found else {}
    return Summary.of(
        plan,
        output=str(output),
        done=done,
        failed=failed,
        nonfinite_values=sum(one.nonfinite_values for one in found),
        saturated_values=sum(one.saturated_values for one in found),
        bytes=sum(one.bytes for one in found),
        seconds=0.0,
        already_finished=bool(found) and all(one.already_finished for one in found),
        features={layer: (plan.rows, *shape[1:]) for layer, shape in shapes.items()},
        failures=failures,
    )
