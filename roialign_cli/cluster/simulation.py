"""How long shards take on nodes that differ, lag and fail; the next free node takes the next shard, as with Ray."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Nodes:
    """What is assumed of nodes. Speeds scatter log-normally around 1; some lag; each fails now and then and starts again."""

    count: int
    scatter: float = 0.05  # standard deviation of log speed
    lagging: float = 0.03  # share of nodes that
    lag: float = 2.0  # are so many times slower
    hours_between_failures: float = 500.0  # of one node
    restart_seconds: float = 180.0  # until it works again; a shard goes on where it ended
    begin_seconds: float = 20.0  # of each shard: imports, model, reading the plan


def simulate(seconds: Seconds, nodes: Nodes, rng: np.random.Generator) -> float:
    """Seconds until the last of the shards [S] is done, which take so long each on a node of speed 1."""
    speed = np.exp(rng.normal(0, nodes.scatter, nodes.count))
    speed[rng.random(nodes.count) < nodes.lagging] /= nodes.lag
    free = [(0.0, node) for node in range(nodes.count)]
    end = 0.0
    for work in seconds.tolist():
        begun, node = heapq.heappop(free)
        busy = nodes.begin_seconds + work / speed[node]
        failures = rng.poisson(busy / 3600 / nodes.hours_between_failures)
        done = begun + busy + failures * nodes.restart_seconds
        end = max(end, done)
        heapq.heappush(free, (done, node))
    return end


def makespans(seconds: Seconds, nodes: Nodes, times: int = 200, seed: int = 0) -> Seconds:
    """Of so many simulated runs, ascending."""
    rng = np.random.default_rng(seed)
    return np.sort([simulate(seconds, nodes, rng) for _ in range(times)])
