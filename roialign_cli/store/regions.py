"""Hold the regions of one image as a feature file has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from roialign_cli.store.parts import Array


@dataclass(frozen=True)
class Regions:
    """Hold what a file has of one image with L boxes; all arrays are in the order of the box file.

    boxes [L, 4] are in pixels of the original, upright image; size is its (height, width). `mapped` has the feature rows of
    each layer as they lie in the file, memory-mapped and read-only.

    Regions that are not boxes have, in pixels: rotated [L, 5] (centre x, centre y, width, height, degrees counter-clockwise);
    points [L, P, 3] (x, y, visibility); of masks, coverage [L, PH, PW] is the share of each bin that is in the mask, [L] if
    there is one bin; area [L] is that of the rotated box or mask. `boxes` then enclose them.
    """

    name: str
    mapped: Mapping[str, Array] = field(repr=False)
    boxes: Array
    size: tuple[int, int]
    labels: Array | None = None
    scores: Array | None = None
    ids: Array | None = None
    levels: Array | None = None
    rotated: Array | None = None
    points: Array | None = None
    coverage: Array | None = None
    area: Array | None = None

    @cached_property
    def features(self) -> Array | dict[str, Array]:
        """Features [L, C, PH, PW], [L, C] if reduced, [L, P, C] of points; with several layers, a dict of them by layer.

        They are read on first use, into memory of their own: torch takes them as they are, and they may be changed.
        """
        found = {layer: np.array(rows) for layer, rows in self.mapped.items()}
        return found if len(found) > 1 else next(iter(found.values()))

    def __len__(self) -> int:
        return len(self.boxes)
