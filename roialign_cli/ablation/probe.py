"""Does a setting matter for a task? Leave-one-out nearest-centroid accuracy of the labels, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roialign_cli.arrays import Integers

MAX_BOXES = 10_000  # boxes; of more, a random sample
DIMENSIONS = 256  # of the signed random sums (feature hashing, arXiv:0902.2206) that stand for the features


@dataclass(frozen=True)
class Score:
    """Share of boxes whose own class has the nearest centroid, of how many boxes and classes; chance: always the commonest."""

    accuracy: float
    chance: float
    boxes: int
    classes: int


class Probe:
    """Collects a sketch of the pooled features of chosen rows, for each of `variants` on each of `layers`; seeded."""

    def __init__(self, labels: Integers, variants: int, layers: int) -> None:
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(len(labels), min(MAX_BOXES, len(labels)), replace=False))
        self._labels = torch.from_numpy(labels[rows])
        self._slot = np.full(len(labels), -1)
        self._slot[rows] = np.arange(len(rows))
        self._sketch = torch.full((variants, layers, len(rows), DIMENSIONS), torch.nan, dtype=torch.float16)
        self._mixing: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, variant: int, layer: int, rows: Integers, pooled: Tensor) -> None:
        """Features [K, C, PH, PW] of rows [K] of the box file."""
        slots = self._slot[rows]
        chosen = np.flatnonzero(slots >= 0)
        if len(chosen):
            flat = pooled[torch.from_numpy(chosen).to(pooled.device)].flatten(1)
            self._sketch[variant, layer, slots[chosen]] = self._mix(flat).cpu().half()

    def _mix(self, flat: Tensor) -> Tensor:
        """Unit vectors [k, D] to [k, DIMENSIONS]: signed sums of random groups keep distances, on average."""
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
        """Of the boxes seen so far; None if no class has two of them."""
        sketch = self._sketch[variant, layer]
        seen = ~sketch.isnan().any(1)
        return nearest_centroid(sketch[seen].float(), self._labels[seen])


def nearest_centroid(points: Tensor, labels: Tensor) -> Score | None:
    """Leave-one-out: each point [n, d] against the mean of every class, its own without itself.

    A point alone in its class has no class to find and is not counted. None if all are alone.
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
