"""Compare simulated clusters with closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from roialign_cli.cluster.simulation import Nodes, makespans, simulate


def test_a_simulated_cluster() -> None:
    """Equal nodes never fail, failures cost their time, and one node lags: closed forms exist for each."""
    even = Nodes(4, scatter=0, lagging=0, hours_between_failures=1e12, begin_seconds=0)
    rng = np.random.default_rng(0)
    assert simulate(np.full(8, 60.0), even, rng) == 120
    assert simulate(np.full(9, 60.0), even, rng) == 180
    assert simulate(np.full(2, 60.0), even, rng) == 60
    assert simulate(np.full(8, 60.0), replace(even, begin_seconds=5), rng) == 130
    failing = Nodes(1, 0, 0, hours_between_failures=1, restart_seconds=36, begin_seconds=0)
    mean = np.mean([simulate(np.full(10, 3600.0), failing, rng) for _ in range(400)])
    assert mean == pytest.approx(36000 + 10 * 36, rel=0.002)
    slow = Nodes(1, scatter=0, lagging=1, lag=2, hours_between_failures=1e12, begin_seconds=0)
    assert simulate(np.full(3, 10.0), slow, rng) == 60
    lagging = Nodes(100)
    few, many = (np.median(makespans(np.full(100 * n, 3600.0 / n), lagging, 50)) for n in (1, 16))
    assert many < 0.7 * few  # small shards let others do what a slow node would
