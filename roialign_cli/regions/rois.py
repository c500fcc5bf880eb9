"""Turn boxes of images into RoIs in pixels of the network input, and assign them to the levels of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def assign_levels(
    boxes: Tensor, strides: tuple[int, ...], canonical_level: int = 4, canonical_size: int = 224
) -> Tensor:
    """Return the pyramid level [L] int64 of each box [L, 4] in pixels of the network input; 0 has the finest stride.

    Eq. 1 of Feature Pyramid Networks (arXiv:1612.03144): k = floor(k0 + log2(sqrt(area) / canonical_size)), clamped to the
    levels that exist.
    """
    finest, coarsest = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    k = torch.floor(canonical_level + torch.log2(torch.sqrt(area) / canonical_size) + EPSILON)
    return k.clamp(finest, coarsest).to(torch.int64) - finest


def roi_levels(rois: Tensor, layer: Layer, settings: Settings) -> Tensor | None:
    """Return the level [K] of each RoI [K, 5] on a layer, or None if the layer has only one map."""
    if len(layer.strides) == 1:
        return None
    return assign_levels(rois[:, 1:].float(), layer.strides, settings.canonical_level, settings.canonical_size)
