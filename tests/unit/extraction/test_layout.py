"""Test the layout of a run's file for each kind of region, and how its plan is divided into shards."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from helpers.region_files import region_content

from roialign_cli.backbones import load_backbone
from roialign_cli.config import Settings
from roialign_cli.extraction.job import make_layout
from roialign_cli.extraction.shards import shard_plan, split_plan
from roialign_cli.shapes import POLYGONS, Shape, Shapes
from roialign_cli.store.layout import Layout


def layout_of(region: str, **more: Any) -> Layout:
    settings = Settings(backbone="gabor", region=region, **more)
    return make_layout(load_backbone(settings), settings, region_content(region, points=17).plan, {})


@pytest.mark.parametrize(
    ("region", "more", "layers", "tables"),
    [
        ("box", {}, {"gabor": (32, 7, 7)}, {}),
        ("rotated", {"output_size": (2, 3)}, {"gabor": (32, 2, 3)}, {"area": ()}),
        ("mask", {"output_size": (2, 3)}, {"gabor": (32, 2, 3)}, {"coverage": (2, 3), "area": ()}),
        ("mask", {"output_size": (1, 1)}, {"gabor": (32, 1, 1)}, {"coverage": (), "area": ()}),
        ("mask", {"output_size": (2, 3), "reduce": "mean"}, {"gabor": (32,)}, {"coverage": (2, 3), "area": ()}),
        ("points", {}, {"gabor": (17, 32)}, {}),
    ],
)
def test_what_a_file_holds_of_each_region(
    region: str, more: dict[str, Any], layers: dict[str, Any], tables: dict[str, Any]
) -> None:
    layout = layout_of(region, **more)
    assert (layout.layers, layout.tables) == (layers, tables)


def test_a_shard_has_the_regions_of_its_images() -> None:
    for kind in ("rotated", "points"):
        plan = region_content(kind).plan
        shapes = Shapes.pack(Shape(POLYGONS, [np.full((3, 2), i)]) for i in range(plan.rows))
        whole = split_plan(dataclasses.replace(plan, table=dataclasses.replace(plan.table, shapes=shapes)), 2, None)
        parts = [shard_plan(whole, number)[0].table for number in (1, 2)]
        assert [len(part.boxes) for part in parts] == [2, 4]
        assert np.array_equal(np.concatenate([getattr(part, kind) for part in parts]), getattr(plan.table, kind))
        for part, first in zip(parts, (0, 2), strict=True):
            assert part.shapes is not None
            assert len(part.shapes) == len(part.boxes)
            assert [part.shapes[i].parts[0][0, 0] for i in range(len(part.boxes))] == [
                first + i for i in range(len(part.boxes))
            ]
