"""Extract the shards of a run with Ray: each actor keeps a backbone and computes shard after shard.

Ray places the actors, restarts those that die, on another node if theirs is gone, and gives them their shard again, which is
resumed. The plan is made once, here, and its part travels with each shard.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from roialign_cli.cluster.connection import (
    Cluster,
    SharedPaths,
    check_nodes,
    connected,
    marked,
    not_shared,
    plan_actors,
    result_of,
)
from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError, OutputError, RoialignError
from roialign_cli.extraction.shards import Shard, shard_plan, split_plan
from roialign_cli.inputs.images import ImageSet
from roialign_cli.store.merge import merge
from roialign_cli.store.output import locked
from roialign_cli.store.parts import Part
from roialign_cli.store.schema import DONE, FAILED
from roialign_cli.system.atomic import check_not_input
from roialign_cli.types import Plan, Progress, Summary

POLL_SECONDS = 1.0  # between two looks at the shards for progress
PLACEMENT_SECONDS = 1800.0  # until the first worker must have started: an autoscaler may have to start a machine
LOCK_SECONDS = 300.0  # in which a worker that lost the cluster notices it and releases its shard


def extract_on_cluster(
    plan: Plan,
    images: ImageSet,
    output: Path,
    settings: Settings,
    cluster: Cluster,
    *,
    join: bool = True,
    overwrite: bool = False,
    reuse: Sequence[Path] = (),
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Extract a plan as shards; with `join` merge them into the output and remove them at the end.

    The same call resumes an interrupted run. What earlier files, `reuse`, hold is taken over by each shard. Raises what
    `fill_shards` and `merge` raise.
    """
    begun = time.monotonic()
    count = cluster.shards_of(plan.images)
    shards = [Shard(number, count) for number in range(1, count + 1)]
    paths = [shard.path(output) for shard in shards]
    if output.exists() and not overwrite and not any(path.exists() for path in paths):
        from roialign_cli.extraction.job import prepare_job
        from roialign_cli.extraction.run import run_job  # loads torch, which otherwise only the workers do

        job = prepare_job(plan, images, output, settings)  # merged already: failed images are tried again here
        return run_job(job, overwrite=False, reuse=reuse, on_progress=on_progress, should_stop=should_stop)
    check_not_input(output, reuse)
    with locked(output):
        stale = (output, *paths) if overwrite else ()
        earlier = [path.resolve() for path in reuse]
        found = fill_shards(plan, shards, images, output, settings, cluster, stale, earlier, on_progress, should_stop)
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
    images: ImageSet,
    output: Path,
    settings: Settings,
    cluster: Cluster,
    stale: Sequence[Path],
    reuse: Sequence[Path],
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> list[Summary]:
    """Compute all shards of a plan; return their summaries, fewer if `should_stop` asks for it.

    Stale files are removed when the first worker is ready. Raises ConfigError if Ray is not installed, not reachable, or has
    no room, OutputError if a node does not see the paths, and the first error of a shard.
    """
    found: list[Summary] = []
    with connected(cluster) as ray, marked(images.paths, output) as paths:
        check_nodes(ray, paths)
        actors, cores = plan_actors(ray, cluster)
        options = {"num_cpus": cores, "num_gpus": cluster.gpus_per_actor, "max_restarts": -1, "max_task_retries": -1}
        worker = ray.remote(**options)(_Worker)
        pool = [worker.remote(settings, images, paths, max(1, int(cores))) for _ in range(min(actors, len(shards)))]
        running = {actor.begin.remote(): actor for actor in pool}
        left: Iterator[tuple[Shard, Plan, dict[str, Any]]] | None = None
        watch, begun = _ShardWatcher(plan, [shard.path(output) for shard in shards]), time.monotonic()
        while len(found) < len(shards) and not should_stop():
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for reference in ready:
                actor, result = running.pop(reference), result_of(ray, reference)
                if isinstance(result, Summary):
                    found.append(result)
                elif left is None:  # the first worker that is ready returns the resize
                    for path in stale:
                        path.unlink(missing_ok=True)
                    left = _parts(plan, shards, result)
                if left is not None and (part := next(left, None)) is not None:
                    running[actor.fill.remote(*part, reuse)] = actor
                else:
                    ray.kill(actor)  # its resources may be needed by an actor whose node is gone
            if left is None and time.monotonic() - begun > PLACEMENT_SECONDS:
                wanted = f"{cores:g} cores and {cluster.gpus_per_actor:g} GPUs"
                raise ConfigError("engine", f"engine: expected room for a worker of {wanted}, Ray found none")
            on_progress(watch.progress())
    return found


def _parts(plan: Plan, shards: Sequence[Shard], resize: tuple[int, int | None] | None) -> Iterator[Any]:
    """Yield the arguments of `_Worker.fill` for each shard, made when they are needed."""
    whole = split_plan(plan, len(shards), resize)
    return ((shard, *shard_plan(whole, shard.number)) for shard in shards)


class _Worker:
    """Compute shards one after another with one backbone, as an actor of Ray.

    Errors are returned, since Ray would wrap those that are raised, and try again.
    """

    def __init__(self, settings: Settings, images: ImageSet, paths: SharedPaths, threads: int) -> None:
        import torch

        from roialign_cli.system import allocator

        torch.set_num_threads(threads)
        self._memory = ExitStack()  # retains memory from shard to shard while this process lives
        self._memory.enter_context(allocator.retain_freed_memory())
        self._images, self._paths = images, paths
        self._settings = replace(settings, processes=0)  # this actor is one of the processes
        self._backbone: Any = None

    def begin(self) -> tuple[int, int | None] | RoialignError | None:
        """Load the backbone; return its resize, or an error."""
        from roialign_cli.backbones import load_backbone

        try:
            if problem_here := self._paths.problem_here():  # a node may have joined after all were checked
                return not_shared(f"node {socket.gethostname()}", problem_here)
            self._backbone = load_backbone(self._settings)
        except RoialignError as error:
            return error
        resize: tuple[int, int | None] | None = self._backbone.preprocessing.resize
        return resize

    def fill(self, shard: Shard, plan: Plan, about: dict[str, Any], reuse: Sequence[Path]) -> Summary | RoialignError:
        """Compute a shard, or what is missing of it; return its summary, or an error."""
        from roialign_cli.extraction.job import make_job
        from roialign_cli.extraction.run import run_job
        from roialign_cli.inputs.images import limit_pixels

        if self._backbone is None and isinstance(error := self.begin(), RoialignError):  # this actor was restarted
            return error
        mine = replace(plan, sizes=plan.sizes.copy())  # arrays that Ray shares are read-only
        try:
            with limit_pixels(self._settings.max_pixels):
                output = shard.path(self._paths.output)
                job = make_job(mine, self._images, output, self._settings, self._backbone, about)
                return run_job(job, overwrite=False, reuse=reuse, patience=LOCK_SECONDS)
        except RoialignError as error:
            return error


class _ShardWatcher:
    """Watch the progress of shards in their files."""

    def __init__(self, plan: Plan, paths: list[Path]) -> None:
        self._plan = plan
        self._paths = paths
        self._parts: dict[Path, Part] = {}

    def progress(self) -> Progress:
        """Return the progress of all shards."""
        images = boxes = stored = 0
        for path in self._paths:
            with suppress(OutputError):  # does not exist yet
                part = self._parts.get(path) or self._parts.setdefault(path, Part(path))
                finished = np.array(part.map("images/status")) > 0
                rows = int(np.diff(part.map("images/offset"))[finished].sum())
                images, boxes = images + int(finished.sum()), boxes + rows
                stored += rows * sum(
                    extent.row_bytes for name, extent in part.extents.items() if name.startswith("features")
                )
        return Progress(images, self._plan.images, boxes, self._plan.rows, stored)


def _summarise(plan: Plan, output: Path, paths: list[Path], found: list[Summary]) -> Summary:
    """Return the summary of the whole run from the files of its shards; counts of values cover the shards computed now."""
    done = failed = 0
    failures: dict[str, str] = {}
    for path in paths:
        with suppress(OutputError):  # not started
            part = Part(path)
            status = part.map("images/status")
            done, failed = done + int((status == DONE).sum()), failed + int((status == FAILED).sum())
            for i in np.flatnonzero(status == FAILED).tolist():
                failures[part.map("images/name")[i].decode()] = part.map("images/error")[i].decode("utf-8", "replace")
    shapes = found[0].features if found else {}
    computed = [one.computed for one in found if one.computed is not None]
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
        reused_images=sum(one.reused_images for one in found),
        reused_boxes=sum(one.reused_boxes for one in found),
        computed=dict(sum(map(Counter, computed), Counter())) if computed else None,
    )
