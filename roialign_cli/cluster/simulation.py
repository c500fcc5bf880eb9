"""Simulate how long shards take on nodes that differ, lag and fail; a free node takes the next shard, as with Ray."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Nodes:
    """Hold assumptions about nodes: speeds are log-normal around 1, some nodes lag, and each fails and restarts at times."""

    count: int
    scatter: float = 0.05  # standard deviation of log speed
    lagging: float = 0.03  # share of nodes that lag
    lag: float = 2.0  # by which lagging nodes are slower
    hours_between_failures: float = 500.0  # of one node
    restart_seconds: float = 180.0  # until it works again; a shard is resumed
    begin_seconds: float = 20.0  # at the start of each shard: imports, model, reading the plan


def simulate(seconds: Seconds, nodes: Nodes, rng: np.random.Generator) -> float:
    """Return the seconds until all shards are done; `seconds` [S] is the time of each on a node of speed 1."""
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
    """Return the makespans of a number of simulated runs, in ascending order."""
    rng = np.random.default_rng(seed)
    return np.sort([simulate(seconds, nodes, rng) for _ in range(times)])
