"""Pool regions from the maps of one layer: RoI Align as the settings say, and RoI Pool as a baseline."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from roialign_cli.backbones.base import Layer, Levels
from roialign_cli.config import Settings, format_scale, format_size
from roialign_cli.ops import deform_roi_align, point_sample, roi_align, roi_align_masked, roi_align_rotated
from roialign_cli.ops.torchvision import roi_pool
from roialign_cli.regions.levels import LevelPass, move_to_centers
from roialign_cli.regions.regions import Regions
from roialign_cli.system.device_queue import upload


def cells_read(
    regions: Regions, levels: Tensor | None, layer: Layer, size: tuple[int, int], settings: Settings
) -> dict[int, Tensor]:
    """Return, for each level that regions are on, the rectangles of map cells [k, 5] int64 that they can read.

    A rectangle is (image, first row, first column, last row, last column). `size` is the network input's (height, width).
    """
    rectangles = {}
    extents = move_to_centers(regions, levels, layer).extents()
    grown = (
        1 if regions.rotated is not None and not settings.aligned else 0
    )  # a turned box covers at least one cell, too
    for level, stride in enumerate(layer.strides):
        on_level = extents if levels is None else extents[levels == level]
        if len(on_level) == 0:
            continue
        cells = on_level.new_tensor([-(-side // stride) for side in size]).repeat(2)
        low = on_level[:, [2, 1]] / stride - (0.5 if settings.aligned else 0.0) - grown
        high = torch.maximum(on_level[:, [4, 3]] / stride + grown, low + 1)  # an unaligned RoI covers at least one cell
        edges = torch.cat([low.floor(), high.floor() + 1], dim=1)  # interpolation also reads the next cell
        edges = torch.minimum(edges.clamp_min(0), cells - 1)
        rectangles[level] = torch.cat([on_level[:, :1], edges], dim=1).to(torch.int64)
    return rectangles


@dataclass(frozen=True)
class Pooled:
    """Features of K regions [K, C, PH, PW], [K, C] with --reduce, or of points [K, P, C]; coverage [K, PH, PW] of masks."""

    features: Tensor
    coverage: Tensor | None = None


def pool(
    maps: Levels,
    layer: Layer,
    regions: Regions,
    levels: Tensor | None,
    settings: Settings,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    moves: tuple[Tensor, Tensor | None] | None = None,
) -> Pooled:
    """Return the features of regions on one layer, of type `dtype`.

    Args:
        maps: one map [N, C, H, W] per level; None for levels that no region is on.
        layer: the layer that the maps belong to.
        regions: in pixels of the network input.
        levels: [K] level of each region; None where the layer has one map.
        settings: output size, sampling, reduction and kernel.
        dtype: type of the result.
        out: a contiguous tensor to write into.
        moves: offsets [K, 2, PH, PW] of the bins of boxes and their factors [K, PH, PW], or None; see `deform_roi_align`.
    """
    regions = move_to_centers(regions, levels, layer)
    features, scales, levels = _present_maps(maps, layer, levels)
    if regions.points is not None:
        return Pooled(
            _sample_points(features, regions.points, regions.rois[:, 0], scales, levels, settings, dtype, out)
        )
    given: dict[str, Any] = {
        "spatial_scale": scales, "sampling_ratio": settings.sampling_ratio, "aligned": settings.aligned,
        "mode": settings.mode, "levels": levels, "reduce": settings.reduce, "dtype": dtype, "kernel": settings.kernel,
        "out": out,
    }  # fmt: skip
    if regions.rotated is not None:
        return Pooled(roi_align_rotated(features, regions.rotated, settings.output_size, **given))
    if regions.masks is not None:
        return Pooled(*roi_align_masked(features, regions.rois, regions.masks, settings.output_size, **given))
    if moves is not None:
        offsets, modulation = moves
        given["modulation"] = modulation
        return Pooled(deform_roi_align(features, regions.rois, offsets, settings.output_size, **given))
    # Boxes are checked when the box file is read.
    return Pooled(roi_align(features, regions.rois, settings.output_size, validate=False, **given))


def _sample_points(
    maps: Sequence[Tensor], points: Tensor, images: Tensor, scales: Sequence[float], levels: Tensor | None,
    settings: Settings, dtype: torch.dtype, out: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return the features [K, P, C] of points [K, P, 2]."""
    count = points.shape[1]
    rows = torch.cat([images.repeat_interleave(count)[:, None], points.flatten(0, 1)], dim=1)
    of_points = None if levels is None else levels.repeat_interleave(count)
    found = point_sample(
        maps, rows, spatial_scale=scales, aligned=settings.aligned, levels=of_points, kernel=settings.kernel
    )
    found = found.view(len(points), count, -1)
    return found.to(dtype) if out is None else out.copy_(found)


def pool_moved(
    maps: Levels,
    layer: Layer,
    regions: Regions,
    levels: Tensor | None,
    settings: Settings,
    head: nn.Module,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Pooled:
    """Return the features of boxes as `pool` does, with bins moved by a head: pool, compute the offsets, pool again."""
    moves = find_moves(maps, layer, regions, levels, settings, head)
    return pool(maps, layer, regions, levels, settings, dtype, out, moves)


def find_moves(
    maps: Levels, layer: Layer, regions: Regions, levels: Tensor | None, settings: Settings, head: nn.Module
) -> tuple[Tensor, Tensor | None]:
    """Return the offsets of bins [K, 2, PH, PW] and their factors [K, PH, PW], or None, that a head computes for boxes."""
    found: tuple[Tensor, Tensor | None] = head(
        pool(maps, layer, regions, levels, replace(settings, reduce="none")).features
    )
    return found


def reads_of_passes(
    regions: Sequence[Regions], passes: Sequence[LevelPass], layer: Layer, size: tuple[int, int], settings: Settings
) -> dict[int, Tensor]:
    """Return `cells_read` of several sets of regions, each of which is pooled in all passes."""
    found = [cells_read(some, one.level, layer, size, settings) for some in regions for one in passes]
    return {
        level: torch.cat([reads[level] for reads in found if level in reads])
        for level in sorted({level for reads in found for level in reads})
    }


def pool_passes(
    maps: Levels,
    layer: Layer,
    regions: Regions,
    passes: Sequence[LevelPass],
    settings: Settings,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Pooled:
    """Return the features of regions on one layer as `pool` does, of several passes: blended by shares, or as `fuse` says.

    With `fuse: concat` the channels of all levels follow each other, finest first. Bins are reduced after features are fused.
    """
    if len(passes) == 1:
        return pool(maps, layer, regions, passes[0].level, settings, dtype, out)
    bins = replace(settings, reduce="none")
    each = (pool(maps, layer, regions, one.level, bins) for one in passes)
    first = next(each)  # coverage is the same on all levels
    fused = _fuse(itertools.chain([first.features], (pooled.features for pooled in each)), passes, settings)
    if settings.reduce != "none":
        fused = fused.mean((2, 3)) if settings.reduce == "mean" else fused.amax((2, 3))
    return Pooled(fused.to(dtype) if out is None else out.copy_(fused), first.coverage)


def _fuse(pooled: Iterator[Tensor], passes: Sequence[LevelPass], settings: Settings) -> Tensor:
    """Return float32 features [K, C, PH, PW], or [K, P, C] of points, of all passes as one; two are in memory at a time."""
    if settings.fuse == "concat" and settings.levels == "all":
        return torch.cat(list(pooled), dim=2 if settings.region == "points" else 1)
    total: Tensor | None = None
    for features, one in zip(pooled, passes, strict=True):
        part = features
        if one.share is not None:
            shape = (-1, *(1,) * (features.dim() - 1))
            part = features.mul_(upload(one.share, features.device).to(features.dtype).view(shape))
        if total is None:
            total = part
        elif settings.fuse == "max" and settings.levels == "all":
            torch.maximum(total, part, out=total)
        else:
            total += part
    assert total is not None
    return total / len(passes) if settings.fuse == "mean" and settings.levels == "all" else total


@dataclass(frozen=True)
class PooledLayer:
    """What is stored of one of the backbone's layers: the name, the index of the layer, and how it is pooled.

    `context` multiplies the sides of boxes before they are pooled.
    """

    name: str
    index: int
    settings: Settings
    context: float


def pooled_layers(layers: Sequence[Layer], settings: Settings) -> list[PooledLayer]:
    """Return what is stored of the layers: each once, or once for each of several output sizes and scales of boxes.

    The name of several is such as NAME_7x7_context1.5.
    """
    found = []
    sizes, scales = settings.output_sizes or (settings.output_size,), settings.context or (1.0,)
    for (i, layer), size, scale in itertools.product(enumerate(layers), sizes, scales):
        name = layer.name
        if len(sizes) > 1:
            name += f"_{format_size(size)}"
        if len(scales) > 1:
            name += f"_context{format_scale(scale)}"
        found.append(PooledLayer(name, i, replace(settings, output_size=size, output_sizes=()), scale))
    return found


def pooled_channels(layer: Layer, settings: Settings) -> int:
    """Return the channels of a layer's features: those of its maps, or of all levels with `fuse: concat`."""
    concatenated = settings.levels == "all" and settings.fuse == "concat"
    return layer.channels * (len(layer.strides) if concatenated else 1)


def pool_rounded(
    maps: Levels, layer: Layer, rois: Tensor, levels: Tensor | None, output_size: tuple[int, int]
) -> Tensor:
    """Return float32 features [K, C, PH, PW] by RoI Pool, the baseline whose rounding RoI Align was made to remove."""
    features, scales, levels = _present_maps(maps, layer, levels)
    return roi_pool(features, rois, levels, output_size, scales)


def _present_maps(maps: Levels, layer: Layer, levels: Tensor | None) -> tuple[list[Tensor], list[float], Tensor | None]:
    """Return the maps that exist, their scales, and which of these maps each RoI is on."""
    present = [(i, features) for i, features in enumerate(maps) if features is not None]
    if levels is not None:
        levels = torch.searchsorted(torch.tensor([i for i, _ in present]), levels)
    return [features for _, features in present], [1 / layer.strides[i] for i, _ in present], levels
