"""Boxes of a batch -> rows of region features: scaling, level assignment, RoI Align, reduction."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from roialign_cli.config import Settings
from roialign_cli.ops import roi_align
from roialign_cli.structures import Floats, Layer

EPSILON = 1e-6  # torchvision's and detectron2's guard against rounding at the boundary of two levels


def assign_levels(boxes: Tensor, strides: tuple[int, ...], canonical_level: int, canonical_size: int) -> Tensor:
    """The level [L] int64 of each box [L, 4], in pixels of the network input: Eq. 1 of arXiv:1612.03144.

    k = floor(k0 + log2(sqrt(area) / canonical_size)), clamped to the levels there are; level 0 has the finest stride.
    """
    finest, coarsest = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    k = torch.floor(canonical_level + torch.log2(torch.sqrt(area) / canonical_size) + EPSILON)
    return k.clamp(finest, coarsest).to(torch.int64) - finest


def scale_boxes(boxes: Floats, size: tuple[int, int], resized: tuple[int, int]) -> Tensor:
    """Boxes [L, 4] of an image of `size`, in pixels of its resized copy; float64."""
    y, x = (new / old for new, old in zip(resized, size, strict=True))
    return torch.from_numpy(boxes.astype(np.float64) * np.array([x, y, x, y]))


def pool(
    maps: tuple[Tensor, ...], layer: Layer, rois: Tensor, levels: Tensor | None, settings: Settings, out: Tensor | None
) -> Tensor:
    """Region features of one layer [K, C, PH, PW], or [K, C] with --reduce, in the maps' type.

    rois [K, 5] in pixels of the network input; `out` receives unreduced features, if given.
    """
    pooled = roi_align(
        list(maps),
        rois,
        settings.output_size,
        spatial_scale=[1 / stride for stride in layer.strides],
        sampling_ratio=settings.sampling_ratio,
        aligned=settings.aligned,
        mode=settings.mode,
        levels=levels,
        kernel=settings.kernel,
        validate=False,  # the boxes were checked when they were read
        out=out,
    )
    if settings.reduce == "mean":
        return pooled.float().mean(dim=(2, 3))
    if settings.reduce == "max":
        return pooled.amax(dim=(2, 3))
    return pooled
