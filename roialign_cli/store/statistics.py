"""Compute statistics of the values that a feature file holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roialign_cli.store.reader import FeatureFile


@dataclass(frozen=True)
class ValueStatistics:
    """Hold statistics of one layer: number of rows, least, greatest and mean value, share of zeros, number not finite.

    Only finite values count, except in the last; without any, the others are None.
    """

    rows: int
    least: float | None
    greatest: float | None
    mean: float | None
    zeros: float | None
    not_finite: int


def sample_statistics(file: FeatureFile, layer: str, most: int = 1000) -> ValueStatistics | None:
    """Return statistics of at most `most` evenly spread rows of images that are done, or None if there are none."""
    done = file.done_rows
    chosen = (
        done[np.unique(np.linspace(0, len(done) - 1, min(most, len(done))).astype(np.int64))] if len(done) else done
    )
    sample = np.array(file.features(layer)[chosen], np.float32)
    finite = sample[np.isfinite(sample)]
    if not sample.size:
        return None
    if not finite.size:
        return ValueStatistics(len(chosen), None, None, None, None, sample.size)
    mean, zeros = float(finite.mean(dtype=np.float64)), float((finite == 0).mean())
    return ValueStatistics(
        len(chosen), float(finite.min()), float(finite.max()), mean, zeros, sample.size - finite.size
    )
