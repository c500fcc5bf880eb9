"""Boxes of a batch -> rows of region features: scaling, level assignment, RoI Align, reduction."""

from __future__ import annotations

import torch
from torch import Tensor

from roialign_cli.backbones.base import Layer, Levels
from roialign_cli.config import Settings
from roialign_cli.ops import request, roi_align
from roialign_cli.ops.torchvision import roi_pool


def cells_read(
    rois: Tensor, levels: Tensor | None, layer: Layer, size: tuple[int, int], settings: Settings
) -> dict[int, Tensor]:
    """Per level that RoIs [K, 5] are on: the rectangles of cells [k, 5] that they read, at most.

    Each as image, first row, first column, last row, last column; `size` is the network input's (height, width).
    """
    found = {}
    for level, stride in enumerate(layer.strides):
        on = rois if levels is None else rois[levels == level]
        if len(on) == 0:
            continue
        cells = on.new_tensor([-(-side // stride) for side in size]).repeat(2)
        low = on[:, [2, 1]] / stride - (0.5 if settings.aligned else 0.0)
        high = torch.maximum(on[:, [4, 3]] / stride, low + 1)  # a RoI is at least one cell, not aligned
        edges = torch.cat([low.floor(), high.floor() + 1], dim=1)  # interpolation reads the next cell, too
        edges = torch.minimum(edges.clamp_min(0), cells - 1)
        found[level] = torch.cat([on[:, :1], edges], dim=1).to(torch.int64)
    return found


def pool(
    maps: Levels,
    layer: Layer,
    rois: Tensor,
    levels: Tensor | None,
    settings: Settings,
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    """Region features of one layer [K, C, PH, PW], or [K, C] with --reduce, of type `dtype`; in `out` if given.

    Maps that are None must not be the level of any RoI. rois [K, 5] in pixels of the network input.
    """
    features, scales, levels = _given(maps, layer, levels)
    return roi_align(
        features,
        rois,
        settings.output_size,
        spatial_scale=scales,
        sampling_ratio=settings.sampling_ratio,
        aligned=settings.aligned,
        mode=settings.mode,
        levels=levels,
        reduce=settings.reduce,
        dtype=dtype,
        kernel=settings.kernel,
        validate=False,  # the boxes were checked when they were read
        out=out,
    )


def roi_pool_rows(
    maps: Levels, layer: Layer, rois: Tensor, levels: Tensor | None, output_size: tuple[int, int]
) -> Tensor:
    """The same by RoI Pool, float32: the baseline whose rounding RoI Align was made to remove."""
    features, scales, levels = _given(maps, layer, levels)
    call = request.make(
        features, rois, levels, output_size, scales, sampling_ratio=0, aligned=False, mode="max", reduce="none", dtype=None
    )  # fmt: skip
    return roi_pool(call)


def _given(maps: Levels, layer: Layer, levels: Tensor | None) -> tuple[list[Tensor], list[float], Tensor | None]:
    """The maps that are there, their scales, and which of them each RoI is on."""
    there = [(i, features) for i, features in enumerate(maps) if features is not None]
    if levels is not None:
        levels = torch.searchsorted(torch.tensor([i for i, _ in there]), levels)
    return [features for _, features in there], [1 / layer.strides[i] for i, _ in there], levels
