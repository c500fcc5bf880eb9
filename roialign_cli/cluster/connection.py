"""A Ray cluster as we meet it: connected to or started here, with room for so many workers, its nodes seeing our files."""

from __future__ import annotations

import logging
import re
import socket
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roialign_cli.errors import ConfigError, OutputError, RoialignError
from roialign_cli.version import __version__

CONNECT_SECONDS = 10.0
SHARDS, SHARD_IMAGES = 64, 8  # at most so many, of at least so many images, where it is not said


@dataclass(frozen=True)
class Cluster:
    """Where to work: an address (empty: a cluster started here), actors (0: one per GPU, or per node), GPUs of each.

    `shards` 0: a number that depends on the images alone, not on the workers: another day's may be more or fewer.
    """

    address: str = ""
    actors: int = 0
    gpus_per_actor: float = 0.0
    shards: int = 0

    def shards_of(self, images: int) -> int:
        """How many shards a plan of so many images becomes."""
        return max(1, min(images, self.shards or min(SHARDS, images // SHARD_IMAGES)))


@dataclass(frozen=True)
class SharedPaths:
    """What every node must see: the folder of images, and beside the output a file with the very mark of this run."""

    folder: Path
    output: Path
    mark: str

    @property
    def mark_file(self) -> Path:
        """There while the run goes on."""
        return self.output.with_name(f"{self.output.name}.cluster")

    def problem_here(self) -> str:
        """What is wrong with them here, or nothing."""
        if not self.folder.is_dir():
            return f"{self.folder}: expected the folder of images, found none"
        try:
            same = self.mark_file.read_text() == self.mark
        except OSError:
            same = False
        return "" if same else f"{self.output.parent}: expected the folder of the output, found another or none"


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected to a cluster or to one started here. ConfigError: it is not installed, or there is none."""
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


@contextmanager
def marked(folder: Path, output: Path) -> Iterator[SharedPaths]:
    """The paths of a run, whose mark is there meanwhile; OutputError if it cannot be written."""
    paths = SharedPaths(folder.resolve(), output.resolve(), uuid.uuid4().hex)
    try:
        paths.mark_file.write_text(paths.mark)
    except OSError as error:
        raise OutputError("output-permission", f"{output.parent}: cannot be written: {error.strerror}") from None
    try:
        yield paths
    finally:
        paths.mark_file.unlink(missing_ok=True)


def check_nodes(ray: Any, paths: SharedPaths) -> None:
    """Every node that is there must have this very package, and see the paths. ConfigError or OutputError, naming the node."""

    def look(version: str, paths_of: tuple[str, str, str]) -> tuple[str, str]:  # sent whole: roialign may not be there
        from pathlib import Path

        try:
            from roialign_cli.cluster.connection import SharedPaths
            from roialign_cli.version import __version__
        except ImportError:
            return f"expected roialign {version}, found none", ""
        if __version__ != version:
            return f"expected roialign {version}, found {__version__}", ""
        folder, output, mark = paths_of
        return "", SharedPaths(Path(folder), Path(output), mark).problem_here()

    nodes = [node for node in ray.nodes() if node["Alive"]]
    pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    remote, sent = ray.remote(num_cpus=0)(look), (str(paths.folder), str(paths.output), paths.mark)
    answers = [
        remote.options(scheduling_strategy=pinned(node["NodeID"], soft=False)).remote(__version__, sent)
        for node in nodes
    ]
    for node, answer in zip(nodes, answers, strict=True):
        where = f"node {node['NodeManagerAddress']}"
        software, problem_here = result_of(ray, answer)
        if software:
            raise ConfigError("engine", f"{where}: {software}", "install the same version on every node")
        if problem_here:
            raise not_shared(where, problem_here)


def not_shared(where: str, problem_here: str) -> OutputError:
    """The error of a node that does not see the paths."""
    return OutputError("node-paths", f"{where}: {problem_here}", "all paths must be on storage that all nodes share")


def actors_and_cores(ray: Any, cluster: Cluster) -> tuple[int, float]:
    """How many actors, and how many cores each. ConfigError if none, or on a cluster of our own not all, have room.

    Of another's cluster there may be more later, by its autoscaler or when other work ends: Ray places them then.
    """
    there = ray.cluster_resources().get("GPU", 0.0)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    per_gpu = int(there / cluster.gpus_per_actor) if cluster.gpus_per_actor else len(nodes)
    actors = cluster.actors or per_gpu
    if actors < 1 or cluster.gpus_per_actor * actors > there:
        message = f"expected {cluster.gpus_per_actor:g} for each of {max(actors, 1)} workers, found {there:g} in all"
        if not cluster.address or actors < 1:
            hint = "" if not cluster.address else "say how many with --processes if nodes are to be added"
            raise ConfigError("engine", f"gpus_per_worker: {message}", hint)
        warnings.warn(f"{message}; the others begin when Ray finds room", RuntimeWarning, stacklevel=2)
    per_node = -(-actors // len(nodes))
    cores = min(node["Resources"].get("CPU", 1.0) for node in nodes)
    return actors, max(1.0, cores // per_node) if per_node <= cores else cores / per_node


def result_of(ray: Any, reference: Any) -> Any:
    """What a task or actor returned; errors of ours are raised, Ray's become ConfigError."""
    try:
        result = ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        reason = str(cause).strip().split("\n", maxsplit=1)[0]
        message = f"engine: expected Ray's worker to work, it failed: {type(cause).__name__}: {reason}"
        raise ConfigError("engine", message, "--engine local says more, as do Ray's logs") from None
    if isinstance(result, RoialignError):
        raise result
    return result
