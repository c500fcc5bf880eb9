"""Turn boxes of images into RoIs in pixels of the network input, and assign them to the levels of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roialign_cli.arrays import Floats
from roialign_cli.backbones.base import Layer
from roialign_cli.config import Settings

EPSILON = 1e-6  # torchvision and detectron2 add it so that rounding does not move a box on a boundary to another level


def batch_rois(boxes: Sequence[Floats], size: tuple[int, int], resized: tuple[int, int]) -> Tensor:
    """Return the RoIs [K, 5] of a batch: index of the image in the batch, then x1, y1, x2, y2; float64.

    Args:
        boxes: [L, 4] for each image of the batch, in pixels of the original image.
        size: (height, width) that all images of the batch have.
        resized: (height, width) of the network input before padding; RoIs are in its pixels.
    """
    y, x = (new / old for new, old in zip(resized, size, strict=True))
    index = np.repeat(np.arange(len(boxes)), [len(of_image) for of_image in boxes])
    scaled = np.concatenate(boxes).astype(np.float64) * np.array([x, y, x, y])
    return torch.from_numpy(np.concatenate([index[:, None], scaled], axis=1))


def scale_about_centre(rois: Tensor, scale: float) -> Tensor:
    """Return RoIs [K, 5] whose width and height are multiplied by a scale, about the same centres."""
    if scale == 1:
        return rois
    centre, half = (rois[:, 1:3] + rois[:, 3:5]) / 2, (rois[:, 3:5] - rois[:, 1:3]) / 2 * scale
    return torch.cat([rois[:, :1], centre - half, centre + half], dim=1)


def assign_levels(
    boxes: Tensor, strides: tuple[int, ...], canonical_level: int = 4, canonical_size: int = 224
) -> Tensor:
    """Return the pyramid level [L] int64 of each box [L, 4] in pixels of the network input; 0 has the finest stride.

    Eq. 1 of Feature Pyramid Networks (arXiv:1612.03144): k = floor(k0 + log2(sqrt(area) / canonical_size)), clamped to the
    levels that exist.
    """
    finest, coarsest = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    k = torch.floor(_fractional_level(boxes, canonical_level, canonical_size) + EPSILON)
    return k.clamp(finest, coarsest).to(torch.int64) - finest


def _fractional_level(boxes: Tensor, canonical_level: int, canonical_size: int) -> Tensor:
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return canonical_level + torch.log2(torch.sqrt(area) / canonical_size)


def move_to_centers(rois: Tensor, level: Tensor | None, layer: Layer) -> Tensor:
    """Return RoIs [K, 5] moved so that RoI Align reads the cells that look at them, if it was measured where cells look.

    `level` [K] says which map a RoI is pooled from; None on a single map.
    """
    if not layer.offsets:
        return rois
    offsets = torch.tensor(layer.offsets, dtype=rois.dtype)
    moved = rois.clone()
    moved[:, 1:] -= (offsets[:1] if level is None else offsets[level]).repeat(1, 2)
    return moved


@dataclass(frozen=True)
class LevelPass:
    """Where RoIs are pooled once: `level` [K], or None on a single map, and its share [K] of the result, or None for all."""

    level: Tensor | None = None
    share: Tensor | None = None

    def __getitem__(self, rows: Any) -> LevelPass:
        """Return the pass of some of the RoIs."""
        return LevelPass(*(None if part is None else part[rows] for part in (self.level, self.share)))


def level_passes(rois: Tensor, layer: Layer, settings: Settings) -> list[LevelPass]:
    """Return from which levels RoIs [K, 5] are pooled, as the setting `levels` says.

    - assign: from the level of their size, see `assign_levels`.
    - all: from every level, as in GRoIE (arXiv:2004.13665) and PANet (arXiv:1803.01534, section 3.2).
    - soft: from the two levels next to k before it is rounded, in shares 1 - t and t with t the fraction of k; so features
      change continuously with the size of a box, and equal those of `assign` where k is whole.
    """
    if settings.levels == "assign" or len(layer.strides) == 1:
        return [LevelPass(roi_levels(rois, layer, settings))]
    if settings.levels == "all":
        return [LevelPass(torch.full((len(rois),), i)) for i in range(len(layer.strides))]
    lower = roi_levels(rois, layer, settings)
    assert lower is not None
    finest = round(math.log2(layer.strides[0]))
    k = _fractional_level(rois[:, 1:], settings.canonical_level, settings.canonical_size) - finest
    upper = (lower + 1).clamp_max(len(layer.strides) - 1)
    share = (k - lower).clamp(0, 1)  # a box of no area has k = -inf, one beyond the last level more than 1
    return [LevelPass(lower, 1 - share), LevelPass(upper, share)]


def roi_levels(rois: Tensor, layer: Layer, settings: Settings) -> Tensor | None:
    """Return the level [K] of each RoI [K, 5] on a layer, or None if the layer has only one map."""
    if len(layer.strides) == 1:
        return None
    return assign_levels(rois[:, 1:].float(), layer.strides, settings.canonical_level, settings.canonical_size)
