"""Test from which levels RoIs are pooled, how the features of several become one, and boxes that are scaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from roialign_cli import roi_align
from roialign_cli.backbones.base import Layer
from roialign_cli.config import Settings
from roialign_cli.regions.levels import level_passes, region_levels
from roialign_cli.regions.pooling import pool_passes, pooled_channels, pooled_layers, reads_of_passes
from roialign_cli.regions.regions import Regions

FPN = Layer("fpn", 6, (4, 8, 16, 32))
ONE = Layer("last", 6, (16,))


def make_maps(layer: Layer, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, layer.channels, 512 // s, 768 // s, generator=generator) for s in layer.strides)


def squares(*sides: float) -> Tensor:
    return torch.tensor([[0, 20, 30, 20 + side, 30 + side] for side in sides], dtype=torch.float64)


def pooled(rois: Tensor, layer: Layer = FPN, **settings: Any) -> Tensor:
    chosen = Settings(output_size=(3, 2), **settings)
    regions = Regions(rois)
    return pool_passes(make_maps(layer), layer, regions, level_passes(regions, layer, chosen), chosen).features


def of_level(rois: Tensor, level: int) -> Tensor:
    return roi_align(make_maps(FPN)[level], rois, (3, 2), spatial_scale=1 / FPN.strides[level])


def test_soft_equals_assign_where_the_level_is_whole() -> None:
    rois = squares(56, 112, 224, 448, 10, 4000, 0)  # levels 2 to 5, two beyond them, and a point
    assert torch.allclose(pooled(rois, levels="soft"), pooled(rois), atol=1e-5)


@given(st.floats(5, 700))
def test_soft_is_continuous_in_the_size_of_a_box(side: float) -> None:
    """Two boxes that hardly differ have features that hardly differ. An adaptive grid would jump, the integral does not."""
    before, after = pooled(squares(side, side * (1 + 1e-5)), levels="soft", mode="exact")
    assert (after - before).abs().max() < 1e-2


def test_assign_jumps_where_soft_does_not() -> None:
    rois = squares(223.99, 224.01)
    (before, after), (low, high) = pooled(rois, mode="exact"), pooled(rois, mode="exact", levels="soft")
    assert (after - before).abs().max() > 0.1
    assert (high - low).abs().max() < 1e-2


def test_soft_blends_the_two_levels_next_to_the_size() -> None:
    rois = squares(224 * 2**0.25)  # k = 4.25, the levels of strides 16 and 32
    expected = 0.75 * of_level(rois, 2) + 0.25 * of_level(rois, 3)
    assert torch.allclose(pooled(rois, levels="soft"), expected, atol=1e-6)


@pytest.mark.parametrize("fuse", ["mean", "sum", "max", "concat"])
@pytest.mark.parametrize("reduce", ["none", "mean", "max"])
def test_all_levels(fuse: str, reduce: str) -> None:
    rois = squares(30, 300)
    parts = torch.stack([of_level(rois, level) for level in range(4)])
    expected = {"mean": parts.mean(0), "sum": parts.sum(0), "max": parts.amax(0), "concat": torch.cat([*parts], 1)}[
        fuse
    ]
    if reduce != "none":
        expected = expected.mean((2, 3)) if reduce == "mean" else expected.amax((2, 3))
    found = pooled(rois, levels="all", fuse=fuse, reduce=reduce)
    assert found.shape[1] == pooled_channels(FPN, Settings(levels="all", fuse=fuse))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("levels", ["assign", "all", "soft"])
def test_a_single_map_has_no_levels_to_choose(levels: str) -> None:
    rois = squares(30, 300)
    assert torch.equal(
        pooled(rois, ONE, levels=levels, fuse="concat" if levels == "all" else "mean"), pooled(rois, ONE)
    )


def test_reads_cover_what_is_pooled() -> None:
    """Cells that are not read may hold anything."""
    regions = Regions(squares(30, 100, 300))
    for levels, context in (("soft", (1.0, 2.0)), ("all", (0.5,)), ("assign", (3.0,))):
        chosen = Settings(output_size=(3, 2), levels=levels, context=context)
        passes = level_passes(regions, FPN, chosen)
        scaled = [regions.scaled_about_centre(scale) for scale in context]
        reads = reads_of_passes(scaled, passes, FPN, (512, 768), chosen)
        maps = make_maps(FPN)
        masked = [torch.full_like(m, torch.nan) for m in maps]
        for level, rectangles in reads.items():
            for n, top, left, bottom, right in rectangles.tolist():
                part = (n, slice(None), slice(top, bottom + 1), slice(left, right + 1))
                masked[level][part] = maps[level][part]
        for some in scaled:
            found = pool_passes(tuple(masked), FPN, some, passes, chosen).features
            assert torch.equal(found, pool_passes(maps, FPN, some, passes, chosen).features)


def test_boxes_are_scaled_about_their_centre() -> None:
    regions = Regions(torch.tensor([[1.0, 10, 20, 30, 60]]))
    assert regions.scaled_about_centre(1.5).rois.tolist() == [[1.0, 5, 10, 35, 70]]
    assert regions.scaled_about_centre(1) is regions


def test_names_of_several_sizes_and_scales() -> None:
    layers = [Layer("a", 1, (4,)), Layer("b", 1, (8,))]
    several = Settings(output_sizes=((7, 7), (3, 5)), context=(1.0, 1.5))
    assert [one.name for one in pooled_layers(layers[:1], several)] == [
        "a_7x7_context1", "a_7x7_context1.5", "a_3x5_context1", "a_3x5_context1.5",
    ]  # fmt: skip
    assert [one.name for one in pooled_layers(layers, replace(several, output_sizes=(), context=(2.0,)))] == ["a", "b"]
    assert region_levels(Regions(squares(30)), layers[0], several) is None
