"""Connect to a Ray cluster or start one, check that its nodes see our files, and plan its workers."""

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
DEFAULT_SHARDS, MIN_SHARD_IMAGES = 64, 8  # if the number of shards is not given


@dataclass(frozen=True)
class Cluster:
    """Describe the cluster: address (empty: started here), actors (0: one per GPU, or per node), GPUs per actor.

    With `shards` 0 their number depends on the images alone and not on the workers, which may differ when a run is resumed.
    """

    address: str = ""
    actors: int = 0
    gpus_per_actor: float = 0.0
    shards: int = 0

    def shards_of(self, images: int) -> int:
        """Return the number of shards of a plan with a number of images."""
        return max(1, min(images, self.shards or min(DEFAULT_SHARDS, images // MIN_SHARD_IMAGES)))


@dataclass(frozen=True)
class SharedPaths:
    """Hold what every node must see: the images, and beside the output a file with the mark of this run."""

    images: tuple[Path, ...]  # the folder, or the archives
    output: Path
    mark: str

    @property
    def mark_file(self) -> Path:
        """The file that exists during the run."""
        return self.output.with_name(f"{self.output.name}.cluster")

    def problem_here(self) -> str:
        """Return what is wrong with the paths on this node, or an empty string."""
        for path in self.images:
            if not path.exists():
                return f"{path}: expected the images, found nothing there"
        try:
            same = self.mark_file.read_text() == self.mark
        except OSError:
            same = False
        return "" if same else f"{self.output.parent}: expected the folder of the output, found another or none"


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Yield Ray, connected to a cluster or to one started here. Raises ConfigError if Ray or the cluster is missing."""
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "engine", "engine: expected the package ray, found none", "pip install 'roialign[ray]'"
        ) from None
    if found := re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", cluster.address):  # Ray itself would try for minutes
        try:
            socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
        except OSError as error:
            raise ConfigError(
                "engine", f"address: no Ray cluster at {cluster.address}: {error.strerror or error}"
            ) from None
    try:
        # Without an address a cluster is started here, whatever other clusters Ray remembers.
        options = {"address": cluster.address} if cluster.address else {"address": "local", "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ConfigError(
            "engine", f"address: no Ray cluster at {cluster.address or 'this machine'}: {reason}"
        ) from None
    with redirect_stdout(sys.stderr):  # Ray prints messages to stdout, which is for the result
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def marked(images: tuple[Path, ...], output: Path) -> Iterator[SharedPaths]:
    """Yield the paths of a run, and write its mark meanwhile. Raises OutputError if the mark cannot be written."""
    paths = SharedPaths(tuple(path.resolve() for path in images), output.resolve(), uuid.uuid4().hex)
    try:
        paths.mark_file.write_text(paths.mark)
    except OSError as error:
        raise OutputError("output-permission", f"{output.parent}: cannot be written: {error.strerror}") from None
    try:
        yield paths
    finally:
        paths.mark_file.unlink(missing_ok=True)


def check_nodes(ray: Any, paths: SharedPaths) -> None:
    """Check that every node has this version of the package and sees the paths.

    Raises ConfigError or OutputError naming the node.
    """

    def look(
        version: str, images: tuple[str, ...], output: str, mark: str
    ) -> tuple[str, str]:  # sent by value, since roialign may be missing there
        from pathlib import Path

        try:
            from roialign_cli.cluster.connection import SharedPaths
            from roialign_cli.version import __version__
        except ImportError:
            return f"expected roialign {version}, found none", ""
        if __version__ != version:
            return f"expected roialign {version}, found {__version__}", ""
        return "", SharedPaths(tuple(map(Path, images)), Path(output), mark).problem_here()

    nodes = [node for node in ray.nodes() if node["Alive"]]
    pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    remote = ray.remote(num_cpus=0)(look)
    sent = (tuple(map(str, paths.images)), str(paths.output), paths.mark)
    answers = [
        remote.options(scheduling_strategy=pinned(node["NodeID"], soft=False)).remote(__version__, *sent)
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
    """Return the error of a node that does not see the paths."""
    return OutputError("node-paths", f"{where}: {problem_here}", "all paths must be on storage that all nodes share")


def plan_actors(ray: Any, cluster: Cluster) -> tuple[int, float]:
    """Return the number of actors, and the cores of each.

    Raises ConfigError if there is no room for any actor, or on a cluster started here for all of them. A shared cluster may
    have room later, by its autoscaler or when other work ends; Ray then places the other actors.
    """
    gpus = ray.cluster_resources().get("GPU", 0.0)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    per_gpu = int(gpus / cluster.gpus_per_actor) if cluster.gpus_per_actor else len(nodes)
    actors = cluster.actors or per_gpu
    if actors < 1 or cluster.gpus_per_actor * actors > gpus:
        message = f"expected {cluster.gpus_per_actor:g} for each of {max(actors, 1)} workers, found {gpus:g} in all"
        if not cluster.address or actors < 1:
            hint = "" if not cluster.address else "say how many with --processes if nodes are to be added"
            raise ConfigError("engine", f"gpus_per_worker: {message}", hint)
        warnings.warn(f"{message}; the others start when Ray finds room", RuntimeWarning, stacklevel=2)
    per_node = -(-actors // len(nodes))
    cores = min(node["Resources"].get("CPU", 1.0) for node in nodes)
    return actors, max(1.0, cores // per_node) if per_node <= cores else cores / per_node


def result_of(ray: Any, reference: Any) -> Any:
    """Return the result of a task or actor; errors of ours are raised, and those of Ray become ConfigError."""
    try:
        result = ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        reason = str(cause).strip().split("\n", maxsplit=1)[0]
        message = f"engine: expected Ray's worker to finish, but it failed: {type(cause).__name__}: {reason}"
        raise ConfigError("engine", message, "--engine local says more, as do Ray's logs") from None
    if isinstance(result, RoialignError):
        raise result
    return result
