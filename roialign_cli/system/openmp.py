"""Tell torch's OpenMP threads how long to wait actively, before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPINS = "10000"  # a fraction of a millisecond, which spans the time between two operations of a network


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let GNU OpenMP's idle threads sleep soon, unless the user has said how they wait.

    By default they spin 300,000 times, some milliseconds, unless there are more of them than processors; threads that decode
    images do not count. A run with a small backbone then spends a quarter of its processor time on spinning, which the
    decoding threads lack. Has no effect once torch is loaded, or on other libraries of OpenMP.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)
