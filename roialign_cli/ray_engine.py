"""The shards of a run as work for Ray: one actor per device keeps a backbone and fills shard after shard.

Ray places the actors, starts those again that die, and gives them their shard again, which goes on where it ended. Images, box
file and output must be on storage that all nodes share; that is checked on each first.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError, OutputError, RoialignError
from roialign_cli.sharding import Shard
from roialign_cli.store.parts import Part
from roialign_cli.store.schema import DONE, FAILED
from roialign_cli.structures import Plan, Progress, Summary

LOOK_SECONDS = 1.0  # how often the shards are looked at for progress
CONNECT_SECONDS = 10.0
SHARDS = 64  # a number that does not depend on the workers: another day's may be more or fewer


@dataclass(frozen=True)
class Cluster:
    """Where to work: an address (empty: a cluster started here), actors (0: one per GPU, or per node), GPUs of each."""

    address: str = ""
    actors: int = 0
    gpus_per_actor: float = 0.0
    shards: int = SHARDS


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
    from roialign_cli.pipeline import prepare_job, run_job
    from roialign_cli.store.merge import merge

    begun = time.monotonic()
    count = max(1, min(cluster.shards, plan.images))
    paths = [Shard(number, count).path(output) for number in range(1, count + 1)]
    if overwrite:
        for path in (output, *paths):
            path.unlink(missing_ok=True)
    if output.exists() and not any(path.exists() for path in paths):  # merged already: what failed is tried again here
        job = prepare_job(plan, folder, output, settings)
        return run_job(job, overwrite=False, on_progress=on_progress, should_stop=should_stop)
    found = fill_shards(plan, folder, output, settings, cluster, count, on_progress, should_stop)
    summary = _summarise(plan, output, paths, found, time.monotonic() - begun)
    if join and summary.finished:
        finished = merge(paths, output, should_stop=should_stop).finished
        if finished:
            for path in paths:
                path.unlink()
        summary = replace(summary, finished=finished, interrupted=not finished)
    return replace(summary, seconds=round(time.monotonic() - begun, 3))


def fill_shards(
    plan: Plan,
    folder: Path,
    output: Path,
    settings: Settings,
    cluster: Cluster,
    count: int,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> list[Summary]:
    """Fill all `count` shards of a plan; what came of those that were filled, fewer if told to stop.

    Raises ConfigError: Ray is not installed or not there; OutputError: a node does not see the paths; and the first error of a
    shard.
    """
    shards = [Shard(number, count) for number in range(1, count + 1)]
    with _ray(cluster) as ray:
        _check_nodes(ray, folder.resolve(), output.resolve())
        actors, cpus = _actors(ray, cluster)
        parts = ray.put((plan, folder.resolve(), output.resolve(), settings))  # once per node, not per shard
        worker = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=cpus, num_gpus=cluster.gpus_per_actor)(
            _Worker
        )
        pool = [worker.remote([parts], int(max(1, cpus))) for _ in range(min(actors, count))]
        left, running, found = iter(shards), {}, []
        for actor in pool:
            if (shard := next(left, None)) is not None:
                running[actor.fill.remote(shard)] = actor
        watch = _Watch(plan, [shard.path(output) for shard in shards])
        while running and not should_stop():
            ready, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
            for reference in ready:
                actor, result = running.pop(reference), ray.get(reference)
                if isinstance(result, RoialignError):
                    raise result
                found.append(result)
                if (shard := next(left, None)) is not None:
                    running[actor.fill.remote(shard)] = actor
            on_progress(watch.progress())
        for actor in pool:
            ray.kill(actor)
    return found


class _Worker:
    """An actor: a plan, a backbone once it is needed, and shards one after another."""

    def __init__(self, parts: list[Any], threads: int) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        self._plan, self._folder, self._output, self._settings = ray.get(parts[0])  # type: tuple[Plan, Path, Path, Settings]
        self._backbone: Any = None

    def fill(self, shard: Shard) -> Summary | RoialignError:
        """Fill a shard, or what is missing of it. Errors are returned: Ray would wrap and try them again."""
        from roialign_cli.inputs.images import decoding
        from roialign_cli.pipeline import prepare_job, run_job

        try:
            with decoding(self._settings.max_pixels):
                job = prepare_job(self._plan, self._folder, self._output, self._settings, shard, self._backbone)
                self._backbone = job.backbone
                return run_job(job, overwrite=False)
        except RoialignError as error:
            return error


class _Watch:
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
                    place.row_bytes for name, place in part.places.items() if name.startswith("features")
                )
        return Progress(images, self._plan.images, boxes, self._plan.rows, stored)


def _summarise(plan: Plan, output: Path, paths: list[Path], found: list[Summary], seconds: float) -> Summary:
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
    pending = plan.images - done - failed
    shapes = found[0].features if found else {}
    return Summary(
        output=str(output),
        images=plan.images,
        done=done,
        failed=failed,
        pending=pending,
        boxes=plan.rows,
        outside_boxes=plan.outside_boxes,
        empty_boxes=plan.empty_boxes,
        unused_images=plan.unused_images,
        nonfinite_values=sum(one.nonfinite_values for one in found),
        saturated_values=sum(one.saturated_values for one in found),
        bytes=sum(one.bytes for one in found),
        seconds=round(seconds, 3),
        finished=pending == 0,
        interrupted=pending > 0,
        already_finished=bool(found) and all(one.already_finished for one in found),
        features={layer: (plan.rows, *shape[1:]) for layer, shape in shapes.items()},
        failures=failures,
    )


@contextmanager
def _ray(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected to a cluster or to one started here."""
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "engine", "engine: expected the package ray, found none", "pip install 'roialign[ray]'"
        ) from None
    if found := re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", cluster.address):  # Ray itself tries for minutes
        try:
            socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
        except OSError as error:
            raise ConfigError(
                "engine", f"address: no Ray cluster at {cluster.address}: {error.strerror or error}"
            ) from None
    try:
        # Without an address one is started here, whatever Ray remembers of others.
        options = {"address": cluster.address} if cluster.address else {"address": "local", "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ConfigError(
            "engine", f"address: no Ray cluster at {cluster.address or 'this machine'}: {reason}"
        ) from None
    with redirect_stdout(sys.stderr):  # where Ray's own remarks belong: stdout is the result's
        try:
            yield ray
        finally:
            ray.shutdown()


def _actors(ray: Any, cluster: Cluster) -> tuple[int, float]:
    """How many actors, and how many cores each."""
    there = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    actors = cluster.actors
    if not actors and cluster.gpus_per_actor:
        actors = int(there.get("GPU", 0) / cluster.gpus_per_actor)
    actors = actors or len(nodes)
    if cluster.gpus_per_actor * actors > there.get("GPU", 0) or actors < 1:
        expected = f"expected {cluster.gpus_per_actor:g} for each of {actors} workers"
        raise ConfigError("engine", f"gpus_per_worker: {expected}, found {there.get('GPU', 0):g} in all")
    per_node = -(-actors // len(nodes))
    cores = min(node["Resources"].get("CPU", 1.0) for node in nodes)
    return actors, max(1.0, cores // per_node) if per_node <= cores else cores / per_node


def _check_nodes(ray: Any, folder: Path, output: Path) -> None:
    """Every node must see the images, and beside the output the very file that is written here."""
    token, mark = output.with_name(f"{output.name}.{uuid.uuid4().hex[:8]}.cluster"), uuid.uuid4().hex

    def look(token: str, mark: str, folder: str) -> str:
        if not Path(folder).is_dir():
            return f"{folder}: expected the folder of images, found none"
        try:
            same = Path(token).read_text() == mark
        except OSError:
            same = False
        return "" if same else f"{Path(token).parent}: expected the folder of the output, found another or none"

    try:
        token.write_text(mark)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        remote = ray.remote(num_cpus=0)(look)
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        answers = [
            remote.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(
                str(token), mark, str(folder)
            )
            for node in nodes
        ]
        for node, answer in zip(nodes, ray.get(answers), strict=True):
            if answer:
                where = f"node {node['NodeManagerAddress']}"
                raise OutputError(
                    "node-paths", f"{where}: {answer}", "all paths must be on storage that all nodes share"
                )
    except OSError as error:
        raise OutputError("output-permission", f"{output.parent}: cannot be written: {error.strerror}") from None
    finally:
        token.unlink(missing_ok=True)
