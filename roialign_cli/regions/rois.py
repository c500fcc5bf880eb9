"""Boxes of images -> RoIs in pixels of the network input, and their levels."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from roialign_cli.arrays import Floats
from roialign_cli.backbones.base import Layer
from roialign_cli.config import Settings

EPSILON = 1e-6  # torchvision's and detectron2's guard against rounding at the boundary of two levels


def assign_levels(boxes: Tensor, strides: tuple[int, ...], canonical_level: int, canonical_size: int) -> Tensor:
    """The level [L] int64 of each box [L, 4], in pixels of the network input: Eq. 1 of arXiv:1612.03144.

    k = floor(k0 + log2(sqrt(area) / canonical_size)), clamped to the levels there are; level 0 has the finest stride.
    """
    finest, coarsest = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    k = torch.floor(canonical_level + torch.log2(torch.sqrt(area) / canonical_size) + EPSILON)
    return k.clamp(finest, coarsest).to(torch.int64) - finest


def roi_levels(rois: Tensor, layer: Layer, settings: Settings) -> Tensor | None:
    """The level [K] of each RoI [K, 5] on a layer, or None if it has but one map."""
    if len(layer.strides) == 1:
        return None
    return assign_levels(rois[:, 1:].float(), layer.strides, settings.canonical_level, settings.canonical_size)


def scale_boxes(boxes: Floats, size: tuple[int, int], resized: tuple[int, int]) -> Tensor:
    """Boxes [L, 4] of an image of `size`, in pixels of its resized copy; float64."""
    y, x = (new / old for new, old in zip(resized, size, strict=True))
    return torch.from_numpy(boxes.astype(np.float64) * np.array([x, y, x, y]))
