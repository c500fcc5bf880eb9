"""Assign regions to the levels of a pyramid, and move them to where the cells of a layer look."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roialign_cli.backbones.base import Layer
from roialign_cli.config import Settings
from roialign_cli.regions.regions import Regions

EPSILON = 1e-6  # torchvision and detectron2 add it so that rounding does not move a box on a boundary to another level


def assign_levels(
    boxes: Tensor, strides: tuple[int, ...], canonical_level: int = 4, canonical_size: int = 224
) -> Tensor:
    """Return the pyramid level [L] int64 of each box [L, 4] in pixels of the network input; 0 has the finest stride.

    Eq. 1 of Feature Pyramid Networks (arXiv:1612.03144): k = floor(k0 + log2(sqrt(area) / canonical_size)), clamped to the
    levels that exist.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return _levels_of_areas(area, strides, canonical_level, canonical_size)


def _levels_of_areas(area: Tensor, strides: tuple[int, ...], canonical_level: int, canonical_size: int) -> Tensor:
    finest, coarsest = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    k = torch.floor(_fractional_level(area, canonical_level, canonical_size) + EPSILON)
    return k.clamp(finest, coarsest).to(torch.int64) - finest


def _fractional_level(area: Tensor, canonical_level: int, canonical_size: int) -> Tensor:
    return canonical_level + torch.log2(torch.sqrt(area) / canonical_size)


def move_to_centers(regions: Regions, level: Tensor | None, layer: Layer) -> Regions:
    """Return regions moved so that RoI Align reads the cells that look at them, if it was measured where cells look.

    `level` [K] says which map a region is pooled from; None on a single map.
    """
    if not layer.offsets:
        return regions
    offsets = torch.tensor(layer.offsets, dtype=torch.float64)
    return regions.moved(-(offsets[:1].expand(len(regions), 2) if level is None else offsets[level]))


@dataclass(frozen=True)
class LevelPass:
    """Where regions are pooled once: `level` [K], or None on a single map, and its share [K] of the result, or None for all."""

    level: Tensor | None = None
    share: Tensor | None = None

    def __getitem__(self, rows: Any) -> LevelPass:
        """Return the pass of some of the regions."""
        return LevelPass(*(None if part is None else part[rows] for part in (self.level, self.share)))


def level_passes(regions: Regions, layer: Layer, settings: Settings) -> list[LevelPass]:
    """Return from which levels regions are pooled, as the setting `levels` says.

    - assign: from the level of their size, see `assign_levels`.
    - all: from every level, as in GRoIE (arXiv:2004.13665) and PANet (arXiv:1803.01534, section 3.2).
    - soft: from the two levels next to k before it is rounded, in shares 1 - t and t with t the fraction of k; so features
      change continuously with the size of a box, and equal those of `assign` where k is whole.
    """
    if settings.levels == "assign" or len(layer.strides) == 1:
        return [LevelPass(region_levels(regions, layer, settings))]
    if settings.levels == "all":
        return [LevelPass(torch.full((len(regions),), i)) for i in range(len(layer.strides))]
    lower = region_levels(regions, layer, settings)
    assert lower is not None
    finest = round(math.log2(layer.strides[0]))
    k = _fractional_level(regions.areas(), settings.canonical_level, settings.canonical_size) - finest
    upper = (lower + 1).clamp_max(len(layer.strides) - 1)
    share = (k - lower).clamp(0, 1)  # a box of no area has k = -inf, one beyond the last level more than 1
    return [LevelPass(lower, 1 - share), LevelPass(upper, share)]


def region_levels(regions: Regions, layer: Layer, settings: Settings) -> Tensor | None:
    """Return the level [K] of each region on a layer by its own area, or None if the layer has only one map."""
    if len(layer.strides) == 1:
        return None
    canonical = settings.canonical_level, settings.canonical_size
    if regions.rotated is None and regions.masks is None:
        return assign_levels(regions.rois[:, 1:].float(), layer.strides, *canonical)
    return _levels_of_areas(regions.areas().float(), layer.strides, *canonical)
