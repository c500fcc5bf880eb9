"""Measure whether a setting matters for a task: leave-one-out nearest-centroid accuracy, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roialign_cli.arrays import Integers

MAX_BOXES = 10_000  # with more boxes, a random sample of this size is used
DIMENSIONS = 256  # of the signed random sums that represent the features (feature hashing, arXiv:0902.2206)


@dataclass(frozen=True)
class Score:
    """Hold the share of boxes whose own class has the nearest centroid; `chance` is that of always naming the largest class."""

    accuracy: float
    chance: float
    boxes: int
    classes: int


class Probe:
    """Collect a sketch of the pooled features of sampled rows, for each variant on each layer; the seed is fixed."""

    def __init__(self, labels: Integers, variants: int, layers: int) -> None:
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(len(labels), min(MAX_BOXES, len(labels)), replace=False))
        self._labels = torch.from_numpy(labels[rows])
        self._slot = np.full(len(labels), -1)
        self._slot[rows] = np.arange(len(rows))
        self._sketch = torch.full((variants, layers, len(rows), DIMENSIONS), torch.nan, dtype=torch.float16)
        self._mixing: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, variant: int, layer: int, rows: Integers, pooled: Tensor) -> None:
        """Add features [K, C, PH, PW] of rows [K] of the box file."""
        slots = self._slot[rows]
        chosen = np.flatnonzero(slots >= 0)
        if len(chosen):
            flat = pooled[torch.from_numpy(chosen).to(pooled.device)].flatten(1)
            self._sketch[variant, layer, slots[chosen]] = self._mix(flat).cpu().half()

    def drop(self, rows: Integers) -> None:
        """Leave out rows that were added."""
        slots = self._slot[rows]
        self._sketch[:, :, slots[slots >= 0]] = torch.nan

    def _mix(self, flat: Tensor) -> Tensor:
        """Project vectors [k, D] to [k, DIMENSIONS]: signed sums of random groups preserve distances on average."""
        size = flat.shape[1]
        if size not in self._mixing:
            generator = torch.Generator().manual_seed(size)
            padded = size + -size % DIMENSIONS
            signs = torch.randint(0, 2, (padded,), generator=generator) * 2.0 - 1
            signs[size:] = 0
            self._mixing[size] = torch.randperm(padded, generator=generator), signs
        order, signs = (mixing.to(flat.device) for mixing in self._mixing[size])
        unit = torch.nn.functional.normalize(flat.float(), dim=1)
        signed = torch.nn.functional.pad(unit, (0, len(signs) - size)) * signs
        return signed[:, order].view(len(flat), -1, DIMENSIONS).sum(1)

    def score(self, variant: int, layer: int) -> Score | None:
        """Return the score over the boxes added so far, or None if no class has two of them."""
        sketch = self._sketch[variant, layer]
        seen = ~sketch.isnan().any(1)
        return nearest_centroid(sketch[seen].float(), self._labels[seen])


def nearest_centroid(points: Tensor, labels: Tensor) -> Score | None:
    """Compare each point [n, d] with the mean of every class, leaving the point itself out of its own class.

    A point that is alone in its class is not counted. Returns None if all are.
    """
    classes, label, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(classes), points.shape[1]).index_add_(0, label, points)
    judged = counts[label] > 1
    if not judged.any():
        return None
    points, label = points[judged], label[judged]
    distance = torch.cdist(points, sums / counts[:, None])
    own = (sums[label] - points) / (counts[label] - 1)[:, None]
    distance[torch.arange(len(points)), label] = (points - own).norm(dim=1)
    hits = (distance.argmin(1) == label).sum()
    chance = torch.bincount(label).max()
    return Score(float(hits / len(label)), float(chance / len(label)), len(label), int((counts > 1).sum()))
